"""The mistakes of a run's weights on a split, which `bigbatch evaluate` writes and `bigbatch report` shows.

``mistakes.json`` is about the run's own validation split. Every other data set or split has its own file in
``mistakes/``, so that none replaces another.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, Field, FiniteFloat, NonNegativeInt, ValidationError, field_validator, model_validator

from data.atomic_io import write_atomically
from launcher.runs.class_scores import ClassScores, class_scores
from launcher.runs.event_keys import LATEST_TIME
from launcher.runs.metadata import RunMetadata
from launcher.runs.run_directory import RunDirectory

_MOST_FREQUENT = 20  # confusions listed if there are too many classes for a matrix


class ShownMistake(BaseModel):
    """One image that was classified wrongly.

    Attributes:
        name: of the image and its shard.
        label: the number of its class.
        guess: the number of the likeliest class.
        probability: of `guess`, in 0..1.
        picture: a small JPEG in base64.
    """

    name: str
    label: NonNegativeInt
    guess: NonNegativeInt
    probability: FiniteFloat
    picture: str


class Mistakes(BaseModel):
    """The mistakes of one evaluation.

    Attributes:
        time: of the evaluation, in Unix seconds.
        weights: "raw" or "EMA".
        classes: names by class number.
        images: evaluated.
        wrong: number of images whose likeliest class is not the label.
        confusion: ``[label, guess, images]`` for each pair that occurs, correct ones included.
        surest: the wrong images whose guesses have the highest probability.
        step: of the checkpoint; None in files of version 0.1.0, which also lack the fields below.
        dataset: the name of the shards.
        digest: of the shards' contents.
        split: of the shards.
        calibration_error: the expected calibration error, in 0..1; None in files of version 0.1.0.
    """

    time: Annotated[int, Field(ge=0, le=LATEST_TIME)]
    weights: str
    classes: list[str]
    images: NonNegativeInt
    wrong: NonNegativeInt
    confusion: list[tuple[NonNegativeInt, NonNegativeInt, NonNegativeInt]]
    surest: list[ShownMistake]
    step: NonNegativeInt | None = None
    dataset: str | None = None
    digest: str | None = None
    split: str = "val"
    calibration_error: float | None = None

    @field_validator("weights")
    @classmethod
    def _current_name(cls, weights: str) -> str:
        return {"averaged": "EMA"}.get(weights, weights)  # version 0.1.0 wrote "averaged"

    @model_validator(mode="after")
    def _fits_together(self) -> "Mistakes":
        """Check that no number counts more images or classes than there are."""
        numbers = [number for label, guess, _ in self.confusion for number in (label, guess)]
        numbers += [number for one in self.surest for number in (one.label, one.guess)]
        if self.wrong > self.images or max(numbers, default=-1) >= len(self.classes):
            raise ValueError("it counts images or classes that there are not")
        return self

    @property
    def top1(self) -> float:
        """The share of images whose likeliest class is their label."""
        return (self.images - self.wrong) / max(self.images, 1)

    @property
    def class_scores(self) -> list[ClassScores]:
        """Precision, recall and F1 of each class."""
        return class_scores(self.classes, self.confusion)

    @property
    def matrix(self) -> list[list[int]]:
        """The confusion matrix: images of each class (rows) by predicted class (columns)."""
        counts = [[0] * len(self.classes) for _ in self.classes]
        for label, guess, count in self.confusion:
            counts[label][guess] = count
        return counts

    @property
    def most_frequent(self) -> list[tuple[int, int, int]]:
        """The most frequent confusions: class, predicted class, number of images."""
        wrong = [entry for entry in self.confusion if entry[0] != entry[1]]
        return sorted(wrong, key=lambda entry: -entry[2])[:_MOST_FREQUENT]

    def is_on_own_validation(self, run: RunMetadata) -> bool:
        """Return whether this is about the split on which the run is evaluated while it trains."""
        if self.digest is None:  # version 0.1.0 did not record the shards, so only their classes can be compared
            return self.classes == run.dataset.classes
        return self.digest == run.dataset.digest and self.split == "val"


def write_mistakes(run: RunDirectory, mistakes: Mistakes) -> Path:
    """Write the mistakes of an evaluation, replacing those of an earlier one on the same split; return the file.

    Raises:
        OSError: the file cannot be written.
    """
    file = run.mistakes_file
    if not mistakes.is_on_own_validation(run.metadata()):
        file = run.other_mistakes / f"{(mistakes.digest or '')[:16]}-{mistakes.split}.json"
        file.parent.mkdir(exist_ok=True)
    write_atomically(file, mistakes.model_dump_json().encode())
    return file


def read_mistakes(run: RunDirectory) -> tuple[Mistakes | None, list[Mistakes]]:
    """Return the mistakes on the run's own validation split (None: not evaluated), and those on other data, by name.

    Files that cannot be read are skipped: `bigbatch evaluate` writes them again.
    """
    own, others = None, []
    for mistakes in _all_files(run):
        if mistakes.is_on_own_validation(run.metadata()):
            own = own or mistakes
        else:
            others.append(mistakes)
    return own, sorted(others, key=lambda other: (other.dataset or "", other.split))


def _all_files(run: RunDirectory) -> Iterator[Mistakes]:
    for file in [run.mistakes_file, *sorted(run.other_mistakes.glob("*.json"))]:
        with contextlib.suppress(OSError, ValidationError):
            yield Mistakes.model_validate_json(file.read_bytes())
