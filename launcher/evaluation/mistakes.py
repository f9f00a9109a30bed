"""What a model gets wrong: its confusion matrix and the mistakes it is surest of, kept in the run directory for the report."""

import base64
import io
import json
import time
from collections import Counter

import numpy as np
from PIL import Image
from torch import Tensor

from data.atomic_io import write_atomically
from data.images.augment import decode
from data.reading.shards import Split
from launcher.runs.run_directory import RunDirectory

_KEPT = 24  # mistakes with a picture
_PICTURE = 128  # longer side in pixels


class PredictionRecorder:
    """The likeliest class of every image of a split and its probability; `evaluation.evaluate` shows it batch after batch."""

    def __init__(self):
        self._classes: list[np.ndarray] = []
        self._probabilities: list[np.ndarray] = []

    def __call__(self, logits: Tensor) -> None:
        """Add a batch: float ``[n, classes]``."""
        best = logits.softmax(dim=1).max(dim=1)
        self._classes.append(best.indices.cpu().numpy())
        self._probabilities.append(best.values.float().cpu().numpy())

    def compared_with(self, split: Split) -> dict:
        """Return what is wrong, ready for JSON: counts of (label, guess), and the mistakes of the highest probability."""
        guesses, probabilities = np.concatenate(self._classes), np.concatenate(self._probabilities)
        labels = np.asarray(split.labels)
        wrong = np.flatnonzero(guesses != labels)
        surest = wrong[np.argsort(-probabilities[wrong], kind="stable")][:_KEPT]
        counts = Counter(zip(labels.tolist(), guesses.tolist()))
        return {
            "images": len(labels),
            "wrong": len(wrong),
            "confusion": [[label, guess, count] for (label, guess), count in sorted(counts.items())],
            "surest": [
                {
                    "name": split.sample_name(sample),
                    "label": int(labels[sample]),
                    "guess": int(guesses[sample]),
                    "probability": round(float(probabilities[sample]), 4),
                    "picture": _picture(split.read(sample)),
                }
                for sample in surest.tolist()
            ],
        }


def write_mistakes(run: RunDirectory, weights: str, classes: tuple[str, ...], found: dict) -> None:
    """Keep what `PredictionRecorder.compared_with` found about the run's weights, raw or averaged."""
    contents = {"time": round(time.time()), "weights": weights, "classes": classes, **found}
    write_atomically(run.mistakes_file, json.dumps(contents).encode())


def _picture(image: bytes) -> str:
    """A small JPEG of the photograph, in base64."""
    small = decode(image)
    small.thumbnail((_PICTURE, _PICTURE), Image.Resampling.BICUBIC)
    stored = io.BytesIO()
    small.save(stored, "JPEG", quality=85)
    return base64.b64encode(stored.getvalue()).decode()
