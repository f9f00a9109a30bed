"""Records a model's prediction for each image of a split, and compares the predictions with the labels."""

import time
from collections import Counter
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from data.progress import say
from data.reading.shards import ShardSet, Split
from launcher.runs.class_scores import expected_calibration_error
from launcher.runs.label_page import write_label_page
from launcher.runs.mistakes import Mistakes, write_mistakes
from launcher.runs.predictions import Predictions, write_predictions
from launcher.runs.run_directory import RunDirectory
from launcher.runs.thumbnail import thumbnail

_SHOWN = 24  # mistakes stored with a thumbnail


class PredictionRecorder:
    """Records the likeliest class of every image of a split and its probability.

    `launcher.evaluation.accuracy.measure_accuracy` passes it the logits, batch after batch.
    """

    def __init__(self) -> None:
        self._classes: list[Tensor] = []
        self._probabilities: list[Tensor] = []

    def __call__(self, logits: Tensor) -> None:
        """Add a batch: float ``[n, classes]``."""
        # They stay on the device until the end: reading them here would make the host wait for every batch.
        best = logits.softmax(dim=1).max(dim=1)
        self._classes.append(best.indices)
        self._probabilities.append(best.values.float())

    def gather(self, accelerator: Accelerator) -> None:
        """Collect the predictions of all ranks on each of them; a rank has a contiguous part of the split."""
        if accelerator.num_processes > 1:
            self._classes, self._probabilities = (
                gather_object([torch.cat(parts).cpu()] if parts else [])
                for parts in (self._classes, self._probabilities)
            )

    @property
    def guesses(self) -> np.ndarray:
        """The likeliest class of every image, int64 ``[n]``."""
        return _to_numpy(self._classes)

    @property
    def probabilities(self) -> np.ndarray:
        """The probability of that class, float32 ``[n]``."""
        return _to_numpy(self._probabilities)

    def compared_with(self, split: Split, upright: bool = False) -> dict[str, Any]:
        """Return counts and the mistakes of highest probability, as fields of `launcher.runs.mistakes.Mistakes`.

        Args:
            split: the images.
            upright: show them as their EXIF orientation says.
        """
        guesses, probabilities = self.guesses, self.probabilities
        labels = np.asarray(split.labels)
        wrong = np.flatnonzero(guesses != labels)
        surest = wrong[np.argsort(-probabilities[wrong], kind="stable")][:_SHOWN]
        counts = Counter(zip(labels.tolist(), guesses.tolist()))
        return {
            "time": round(time.time()),
            "images": len(labels),
            "wrong": len(wrong),
            "calibration_error": expected_calibration_error(probabilities, guesses == labels),
            "confusion": [[label, guess, count] for (label, guess), count in sorted(counts.items())],
            "surest": [
                {
                    "name": split.sample_name(sample),
                    "label": int(labels[sample]),
                    "guess": int(guesses[sample]),
                    "probability": round(float(probabilities[sample]), 4),
                    "picture": thumbnail(split.read(sample), upright),
                }
                for sample in surest.tolist()
            ],
        }


def _to_numpy(parts: list[Tensor]) -> np.ndarray:
    found: np.ndarray = torch.cat(parts).cpu().numpy()
    return found


def keep_predictions(
    run: RunDirectory, recorder: PredictionRecorder, shards: ShardSet, split: Split, weights: str, step: int | None
) -> None:
    """Write predictions and mistakes into the run directory for `compare` and `report`; warn if that is not possible.

    For the training split, also write a page about the labels that are likely wrong, and say where it is.

    Args:
        weights: "raw" or "EMA".
        step: of the weights.
    """
    predictions = Predictions(
        weights,
        step,
        shards.name,
        shards.digest,
        split.name,
        labels=np.asarray(split.labels),
        guesses=recorder.guesses,
        probabilities=recorder.probabilities,
    )
    mistakes = Mistakes.model_validate(
        recorder.compared_with(split, run.recipe().input.upright)
        | {"weights": weights, "step": step, "classes": list(shards.classes)}
        | {"dataset": shards.name, "digest": shards.digest, "split": split.name}
    )
    try:
        write_mistakes(run, mistakes)
        write_predictions(run, predictions)
        if split.name == "train":
            page, suspects = write_label_page(run, predictions, shards, split)
            say(f"labels that are likely wrong: {suspects:,} of {len(split):,}, shown in {page}")
    except OSError as error:  # a read-only run can still be evaluated
        say(
            f"warning: the predictions cannot be written to {run.path} ({error.strerror}): the report will not show "
            f"them, and compare cannot use them"
        )
