"""Precision, recall and F1 of each class, from a confusion matrix."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class ClassScores:
    """The scores of one class, in 0..1; None where a score is undefined.

    Attributes:
        name: of the class.
        images: of the class that were evaluated.
        precision: share of correct images among those that were predicted as the class; None if there are none.
        recall: share of the images of the class that were predicted as it; None if it has no images.
        f1: harmonic mean of both; None if the class has no images and was never predicted.
    """

    name: str
    images: int
    precision: float | None
    recall: float | None
    f1: float | None


def class_scores(classes: Sequence[str], confusion: Sequence[tuple[int, int, int]]) -> list[ClassScores]:
    """Return the scores of every class, in the order of `classes`, as scikit-learn computes them.

    Args:
        classes: names by class number.
        confusion: ``(label, guess, images)`` for each pair that occurs, correct ones included.
    """
    from sklearn.metrics import precision_recall_fscore_support  # takes a second to import

    if not confusion:
        return [ClassScores(name, 0, None, None, None) for name in classes]
    labels, guesses, counts = np.array(confusion).T
    precision, recall, f1, images = precision_recall_fscore_support(
        labels, guesses, sample_weight=counts, labels=np.arange(len(classes)), zero_division=np.nan
    )
    columns = [[None if np.isnan(value) else float(value) for value in column] for column in (precision, recall, f1)]
    return [ClassScores(*row) for row in zip(classes, map(round, images), *columns)]


def expected_calibration_error(probabilities: np.ndarray, right: np.ndarray, bins: int = 15) -> float:
    """Return the expected calibration error, in 0..1 (Guo et al. 2017, with their 15 bins of equal width).

    It is the difference between the mean probability and the share of correct images of a bin, averaged over the bins
    by their number of images.

    Args:
        probabilities: of the likeliest class of each image, ``[n]``.
        right: whether it is the right one, bool ``[n]``.
        bins: number of bins.
    """
    bin_of = np.clip(np.ceil(probabilities * bins).astype(int) - 1, 0, bins - 1)
    gaps = np.bincount(bin_of, probabilities - right, minlength=bins)
    return float(np.abs(gaps).sum() / len(probabilities))
