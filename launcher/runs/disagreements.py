"""Images that one run classifies correctly and another one does not, for the report."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from data.reading.shards import ShardSet, Split
from launcher.runs.comparison import common_predictions
from launcher.runs.predictions import Predictions
from launcher.runs.run_directory import RunDirectory
from launcher.runs.significance import PairedDifference, paired_difference
from launcher.runs.thumbnail import thumbnail
from recipes.errors import UserError

_SHOWN = 12  # images in each direction


@dataclass(frozen=True)
class DisputedImage:
    """An image that a run predicts as a class other than its label.

    Attributes:
        name: of the image and its shard.
        label: the name of its class.
        guess: the name of the predicted class.
        probability: of that class, in 0..1.
        picture: a small JPEG in base64.
    """

    name: str
    label: str
    guess: str
    probability: float
    picture: str


@dataclass(frozen=True)
class Disagreements:
    """How a later run of a report differs from the first one on the same images.

    Attributes:
        only_first: images that only the first run gets right, the surest errors of the other one first.
        only_second: images that only the later run gets right, likewise.
    """

    paired: PairedDifference
    images: int
    only_first: list[DisputedImage]
    only_second: list[DisputedImage]


def disagreements(runs: Sequence[RunDirectory]) -> list[Disagreements | None]:
    """Return the disagreements of each run with the first one; None for the first, and all None without predictions.

    Pictures are left out where the shards of the first run cannot be read.
    """
    try:
        kept = common_predictions(runs, "val")
    except UserError:  # not all were evaluated on the same images, which a report does not need
        return [None] * len(runs)
    found, upright = _split_of(runs[0], kept[0]), runs[0].recipe().input.upright
    return [None, *(_between(kept[0], other, *found, upright) for other in kept[1:])]


def _split_of(run: RunDirectory, predictions: Predictions) -> tuple[list[str], Split | None]:
    """Return the class names and the split of the images; no split if the shards are gone or were replaced."""
    path = run.recipe().data.path
    try:
        shards = ShardSet.open(path) if path else None
    except (UserError, OSError):
        shards = None
    if shards is None or shards.digest != predictions.digest:
        return [], None
    return list(shards.classes), shards.splits[predictions.split]


def _between(
    first: Predictions, second: Predictions, classes: list[str], split: Split | None, upright: bool
) -> Disagreements:
    lost, won = np.flatnonzero(first.right & ~second.right), np.flatnonzero(second.right & ~first.right)
    return Disagreements(
        paired_difference(len(lost), len(won), len(first.labels)),
        len(first.labels),
        _disputed(lost, second, classes, split, upright),
        _disputed(won, first, classes, split, upright),
    )


def _disputed(
    images: np.ndarray, wrong: Predictions, classes: list[str], split: Split | None, upright: bool
) -> list[DisputedImage]:
    """Return the images on which `wrong` is surest, with their pictures; none without the split."""
    if split is None:
        return []
    surest = images[np.argsort(-wrong.probabilities[images], kind="stable")][:_SHOWN]
    return [disputed_image(image, wrong, classes, split, upright) for image in surest.tolist()]


def disputed_image(image: int, wrong: Predictions, classes: list[str], split: Split, upright: bool) -> DisputedImage:
    """Return an image of the split that `wrong` predicts as a class other than its label, with its picture.

    The picture is turned as its EXIF orientation says if `upright`.
    """
    return DisputedImage(
        split.sample_name(image),
        classes[wrong.labels[image]],
        classes[wrong.guesses[image]],
        float(wrong.probabilities[image]),
        thumbnail(split.read(image), upright),
    )
