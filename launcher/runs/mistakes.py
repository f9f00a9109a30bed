"""What weights of a run get wrong on a split: kept in the run directory by `bigbatch evaluate`, shown by the report.

``mistakes.json`` is about the run's own validation split. Every other data set or split has a file of its own in
``mistakes/``, so that none replaces another.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path

from pydantic import BaseModel, ValidationError, field_validator

from data.atomic_io import write_atomically
from launcher.runs.metadata import RunMetadata
from launcher.runs.run_directory import RunDirectory

_MOST_FREQUENT = 20  # confusions listed where there are too many classes for a matrix


class ShownMistake(BaseModel):
    """One wrong image.

    Attributes:
        name: of the image and its shard.
        label: the number of its class.
        guess: the number of the likeliest class.
        probability: of `guess`, in 0..1.
        picture: a small JPEG in base64.
    """

    name: str
    label: int
    guess: int
    probability: float
    picture: str


class Mistakes(BaseModel):
    """Everything that one evaluation got wrong.

    Attributes:
        time: of the evaluation, in Unix seconds.
        weights: "raw" or "EMA".
        classes: names by class number.
        images: evaluated.
        wrong: images of which the likeliest class is not the label.
        confusion: ``[label, guess, images]`` for each pair that occurs, right ones included.
        surest: the wrong images of the highest probability.
        step: of the checkpoint; None in files of version 0.1.0, which have neither of the following.
        dataset: the name of the shards.
        digest: of the shards' contents.
        split: of the shards.
    """

    time: int
    weights: str
    classes: list[str]
    images: int
    wrong: int
    confusion: list[tuple[int, int, int]]
    surest: list[ShownMistake]
    step: int | None = None
    dataset: str | None = None
    digest: str | None = None
    split: str = "val"

    @field_validator("weights")
    @classmethod
    def _in_words_of_today(cls, weights: str) -> str:
        return {"averaged": "EMA"}.get(weights, weights)  # as version 0.1.0 called it

    @property
    def matrix(self) -> list[list[int]]:
        """How many images of each class (rows) were taken for each class (columns)."""
        counts = [[0] * len(self.classes) for _ in self.classes]
        for label, guess, count in self.confusion:
            counts[label][guess] = count
        return counts

    @property
    def most_frequent(self) -> list[tuple[int, int, int]]:
        """The most frequent confusions: class, the class that it was taken for, number of images."""
        wrong = [entry for entry in self.confusion if entry[0] != entry[1]]
        return sorted(wrong, key=lambda entry: -entry[2])[:_MOST_FREQUENT]

    def is_on_own_validation(self, run: RunMetadata) -> bool:
        """Whether this is about the split on which the run is evaluated while it trains."""
        if self.digest is None:  # version 0.1.0 did not write which shards it was: other classes give other shards away
            return self.classes == run.dataset.classes
        return self.digest == run.dataset.digest and self.split == "val"


def write_mistakes(run: RunDirectory, mistakes: Mistakes) -> Path:
    """Keep the mistakes of an evaluation, in place of those of an earlier one on the same split; return the file.

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
    """Return the mistakes on the run's own validation split, if there are any, and those on other data, by name.

    Files that cannot be read are left out: `bigbatch evaluate` writes them again.
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
