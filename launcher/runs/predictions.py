"""The predictions of a run on the images of a split, which evaluation keeps and `bigbatch compare` reads.

``predictions/`` in the run directory holds one file for each data set and split. It takes four to eight bytes an image:
the label, the predicted class, and its probability as float16.
"""

import contextlib
import io
import json
import zipfile
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from data.atomic_io import write_atomically
from launcher.runs.run_directory import RunDirectory
from recipes.parsing import parse_json

_METADATA = ("weights", "step", "dataset", "digest", "split")


@dataclass(frozen=True)
class Predictions:
    """The predicted class of every image of a split, in the split's order.

    Attributes:
        weights: "raw" or "EMA".
        step: of the weights; None if unknown.
        dataset: the name of the shards.
        digest: of the shards' contents.
        split: of the shards.
        labels: class numbers, int ``[n]``.
        guesses: the likeliest classes, int ``[n]``.
        probabilities: of the likeliest classes, ``[n]``.
    """

    weights: str
    step: int | None
    dataset: str
    digest: str
    split: str
    labels: np.ndarray = field(repr=False)
    guesses: np.ndarray = field(repr=False)
    probabilities: np.ndarray = field(repr=False)

    @property
    def right(self) -> np.ndarray:
        """Whether the likeliest class is the label, bool ``[n]``."""
        right: np.ndarray = self.labels == self.guesses
        return right

    @property
    def images(self) -> tuple[str, str]:
        """What identifies the images: the digest of the shards and the split."""
        return self.digest, self.split


def write_predictions(run: RunDirectory, predictions: Predictions) -> Path:
    """Write predictions into the run directory, replacing earlier ones on the same images; return the file.

    Raises:
        OSError: the file cannot be written.
    """
    numbers = np.min_scalar_type(max(predictions.labels.max(initial=0), predictions.guesses.max(initial=0)))
    stored = io.BytesIO()
    np.savez(
        stored,
        metadata=np.array(json.dumps({name: getattr(predictions, name) for name in _METADATA})),
        labels=predictions.labels.astype(numbers),
        guesses=predictions.guesses.astype(numbers),
        probabilities=predictions.probabilities.astype(np.float16),
    )
    file = run.predictions / f"{predictions.digest[:16]}-{predictions.split}.npz"
    file.parent.mkdir(exist_ok=True)
    write_atomically(file, stored.getvalue())
    return file


def read_predictions(run: RunDirectory) -> list[Predictions]:
    """Return all predictions that a run has kept, by file name.

    Files that cannot be read are skipped: `bigbatch evaluate` writes them again.
    """
    found = []
    for file in sorted(run.predictions.glob("*.npz")):
        with (
            contextlib.suppress(OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile),
            np.load(file, allow_pickle=False) as stored,
        ):
            metadata = parse_json(str(stored["metadata"]))
            arrays = {name: stored[name] for name in ("labels", "guesses", "probabilities")}
            found.append(Predictions(**{name: metadata[name] for name in _METADATA}, **arrays))
    return found
