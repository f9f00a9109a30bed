"""What every source is: a listing of its images, made once, and a way to read any one of them in any process."""

import hashlib
import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from recipes.errors import UserError
from recipes.randomness import random_key

SPLITS = ("train", "val")
TRAIN, VAL = range(2)


class Names(Sequence):
    """Strings in one block of bytes: millions of them cost little and are shared by forked processes."""

    def __init__(self, names: Iterable[str]):
        block, ends = bytearray(), array("Q", [0])
        for name in names:
            block += name.encode("utf-8", "surrogateescape")
            ends.append(len(block))
        self.block = bytes(block)
        self._ends = np.frombuffer(ends, np.uint64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    def __getitem__(self, i: int) -> str:
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.block[self._ends[i] : self._ends[i + 1]].decode("utf-8", "surrogateescape")


@dataclass
class Listing:
    """The images of a source, one row each, as columns.

    Attributes:
        splits: uint8, index into `SPLITS`.
        labels: int32, index into `classes`.
        sizes: int64, bytes as stored in the source; an estimate where the image is made when it is read.
        names: what the source calls each image; unique.
        classes: names of the classes.
        notes: sentences about what was left out, for the user.
    """

    splits: np.ndarray
    labels: np.ndarray
    sizes: np.ndarray
    names: Names
    classes: list[str]
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def digest(self) -> str:
        """SHA-256 in hexadecimal: equal listings are shared out among shards in the same way."""
        found = hashlib.sha256(json.dumps(self.classes).encode())
        for column in (self.splits, self.labels, self.sizes):
            found.update(np.ascontiguousarray(column).tobytes())
        found.update(self.names.block)
        return found.hexdigest()


class Source(ABC):
    """A place that labelled images come from. Its listing is made at construction; it pickles to workers.

    Attributes:
        kind: what it was recognised as, e.g. "class folders".
        name: what the data set is called unless the user says otherwise.
        listing: its images.
    """

    kind: str
    name: str
    listing: Listing

    @property
    def notes(self) -> list[str]:
        return self.listing.notes

    def digest(self) -> str:
        return self.listing.digest()

    @abstractmethod
    def read(self, i: int) -> bytes:
        """Return the encoded image of row `i` of the listing.

        Raises:
            data.images.inspection.Unreadable: this image is damaged; others may be fine.
            OSError: the source itself cannot be read.
        """


def held_out(names: Sequence[str], labels: np.ndarray, fraction: float) -> np.ndarray:
    """Return a split column that puts `fraction` of each class, at least one image, into validation.

    Who is held out depends on the image's name and class alone, not on the order of the listing or the machine.
    """
    hashes = np.fromiter((random_key(0, f"held out: {name}") for name in names), np.int64, len(names))
    order = np.lexsort((hashes, labels))
    counts = np.bincount(labels)
    held = np.minimum(np.maximum(np.rint(counts * fraction), fraction > 0), np.maximum(counts - 1, 0))
    rank_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    splits = np.full(len(labels), TRAIN, np.uint8)
    splits[order[rank_in_class < held[labels[order]]]] = VAL
    return splits


def require_classes(classes: Sequence[str], place: str) -> None:
    """Refuse what cannot be a classification data set.

    Raises:
        UserError: there are fewer than two classes.
    """
    if len(classes) < 2:
        only = f"only one class, {classes[0]!r}" if classes else "no labelled images"
        raise UserError(f"{place} has {only}: training needs at least two folders of photographs, one per class")
