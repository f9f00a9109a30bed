"""What an evaluation found, as the terminal and `evaluate --json` show it."""

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from data.reading.shards import ShardSet, Split
from launcher.evaluation.accuracy import Accuracy
from launcher.evaluation.prediction_recorder import PredictionRecorder
from launcher.evaluation.right_labels import right_label_accuracy
from launcher.evaluation.saved_weights import SavedWeights
from launcher.runs.class_scores import ClassScores, class_scores, expected_calibration_error
from launcher.runs.intervals import wilson_interval, with_interval


@dataclass(frozen=True)
class EvaluationResult:
    """The evaluation of some weights on a split.

    Attributes:
        title: which weights they are.
        weights: "EMA" or "raw"; None if the file does not say.
        step: optimizer steps finished; None if the file does not say.
        dataset: name of the shards.
        split: of the shards.
        accuracy: over the whole split.
        calibration_error: the expected calibration error, in 0..1.
        classes: precision, recall and F1 of each class.
        right_labels: share of images whose likeliest class is one of their right labels, and the number of images
            that have any; None if no such labels were given.
    """

    title: str
    weights: str | None
    step: int | None
    dataset: str
    split: str
    accuracy: Accuracy
    calibration_error: float
    classes: list[ClassScores]
    right_labels: tuple[float, int] | None = None

    def line(self) -> str:
        """Return the result in one line."""
        accuracy = self.accuracy
        parts = [f"top-1 {with_interval(accuracy.top1, accuracy.images)}"]
        if accuracy.top5 is not None:
            parts.append(f"top-5 {with_interval(accuracy.top5, accuracy.images)}")
        parts += [f"loss {accuracy.loss:.4f}", f"ECE {self.calibration_error:.2%}"]
        if self.right_labels:
            parts.append(f"any right label {with_interval(*self.right_labels)}")
        return f"{self.title}: {'  '.join(parts)}  ({accuracy.images:,} images of split {self.split})"

    def to_dict(self) -> dict[str, Any]:
        """Return it as `evaluate --json` prints it; an interval holds its lower and its upper bound."""
        accuracy, right = self.accuracy, self.right_labels
        intervals = {
            f"{name}_interval": wilson_interval(share, accuracy.images)
            for name, share in (("top1", accuracy.top1), ("top5", accuracy.top5))
            if share is not None
        }
        any_right = {"top1": right[0], "interval": wilson_interval(*right), "images": right[1]} if right else None
        return {
            "weights": self.weights,
            "step": self.step,
            "dataset": self.dataset,
            "split": self.split,
            **accuracy.to_dict(),
            **intervals,
            "calibration_error": self.calibration_error,
            "right_labels": any_right,
            "classes": [asdict(scores) for scores in self.classes],
        }


def evaluation_result(
    weights: SavedWeights,
    accuracy: Accuracy,
    recorder: PredictionRecorder,
    shards: ShardSet,
    split: Split,
    right_labels: str | None,
) -> EvaluationResult:
    """Return the result of an evaluation whose predictions were recorded.

    Raises:
        UserError: the right labels cannot be read.
    """
    labels, guesses = np.asarray(split.labels), recorder.guesses
    pairs = Counter(zip(labels.tolist(), guesses.tolist()))
    classes = list(shards.classes)
    return EvaluationResult(
        weights.title,
        weights.kind,
        weights.step,
        shards.name,
        split.name,
        accuracy,
        expected_calibration_error(recorder.probabilities, guesses == labels),
        class_scores(classes, [(label, guess, count) for (label, guess), count in pairs.items()]),
        right_label_accuracy(guesses, split, classes, right_labels) if right_labels else None,
    )
