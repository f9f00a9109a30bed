"""The common interface of all sources: a listing of their images, and reading any one image in any process."""

import hashlib
import json
from abc import ABC, abstractmethod
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import overload

import numpy as np
from numpy.typing import NDArray

from recipes.errors import UserError


class Names(Sequence[str]):
    """A sequence of strings in one block of bytes, which takes little memory and is shared with forked processes."""

    def __init__(self, names: Iterable[str]):
        block, ends = bytearray(), array("Q", [0])
        for name in names:
            block += name.encode("utf-8", "surrogateescape")
            ends.append(len(block))
        self.block = bytes(block)
        self._ends = np.frombuffer(ends, np.uint64)

    def __len__(self) -> int:
        return len(self._ends) - 1

    @overload
    def __getitem__(self, i: int) -> str: ...
    @overload
    def __getitem__(self, i: slice) -> Sequence[str]: ...
    def __getitem__(self, i: int | slice) -> str | Sequence[str]:
        if isinstance(i, slice):
            return [self[row] for row in range(*i.indices(len(self)))]
        if not 0 <= i < len(self):
            raise IndexError(i)
        return self.block[self._ends[i] : self._ends[i + 1]].decode("utf-8", "surrogateescape")


@dataclass
class Listing:
    """The images of a source, one row each, as columns.

    Attributes:
        splits: uint8, index into `data.sources.splits.SPLITS`.
        labels: int32, index into `classes`.
        sizes: int64, bytes as stored in the source; an estimate where the image is made when it is read.
        names: the unique name of each image in its source.
        classes: names of the classes.
        notes: sentences for the user about what was left out.
    """

    splits: NDArray[np.uint8]
    labels: NDArray[np.int32]
    sizes: NDArray[np.int64]
    names: Names
    classes: list[str]
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.names)

    def digest(self) -> str:
        """Return the SHA-256, in hexadecimal, of the listing. Equal listings are cut into equal shards."""
        found = hashlib.sha256(json.dumps(self.classes).encode())
        for column in (self.splits, self.labels, self.sizes):
            found.update(np.ascontiguousarray(column).tobytes())
        found.update(self.names.block)
        return found.hexdigest()


class Source(ABC):
    """Labelled images. The listing is made at construction, and a source can be pickled to worker processes.

    Attributes:
        kind: the kind that was recognised, e.g. "class folders".
        name: name of the data set.
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

    def prepare(self) -> None:
        """Do what reading needs, once, before worker processes are started that share the result."""
        return None

    @abstractmethod
    def read(self, i: int) -> bytes:
        """Return the encoded image of row `i` of the listing.

        Raises:
            data.images.inspection.Unreadable: this image is damaged; others may be fine.
            OSError: the source itself cannot be read.
        """


def require_classes(classes: Sequence[str], place: str) -> None:
    """Check that a source has at least two classes.

    Raises:
        UserError: it has fewer.
    """
    if len(classes) < 2:
        only = f"only one class, {classes[0]!r}" if classes else "no labelled images"
        raise UserError(
            f"{place} has {only}: training needs at least two folders of images, one per class, or a table of labels "
            f"(--labels)"
        )
