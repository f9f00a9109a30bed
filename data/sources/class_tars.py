"""Tars of one class each, read without unpacking: separate files of a folder, or members of one large tar."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.image_formats import IMAGE_ENDINGS
from data.parallel import Worker, for_each
from data.sources.archives import Archive
from data.sources.base import Names
from data.sources.files import Files, hidden
from data.sources.tar_files import tar_files


@dataclass(frozen=True)
class ClassTar:
    """The tar of one class: `size` bytes of the file `path` from `start` on, or all of it."""

    name: str
    path: Path
    start: int
    size: int


class TarImages(Files):
    """Images inside tars, in the order of the tars and then of their names. `numbers` holds the tar of each image.

    A name is ``<class>/<member>``, the path that unpacking every tar into a folder of its own would give.
    """

    def __init__(self, tars: Sequence[ClassTar], workers: int | None, progress: bool):
        self.place = str(tars[0].path.parent)
        self._paths = [tar.path for tar in tars]
        tasks = list(enumerate(tars))
        by_number = dict(for_each(_list, tasks, None, workers, "listing", len(tars), "tars", progress))
        found = [by_number[number] for number in range(len(tars))]
        self.numbers = np.repeat(np.arange(len(tars), dtype=np.int32), [len(names) for names, _, _ in found])
        self.sizes = np.concatenate([sizes for _, sizes, _ in found])
        self._offsets = np.concatenate([offsets for _, _, offsets in found])
        self.names = Names(f"{tar.name}/{name}" for tar, (names, _, _) in zip(tars, found) for name in names)

    def read(self, i: int) -> bytes:
        # Opened again for each image: in shuffled order, two images in a row are rarely in the same of 21,841 tars.
        descriptor = os.open(self._paths[self.numbers[i]], os.O_RDONLY)
        try:
            return os.pread(descriptor, int(self.sizes[i]), int(self._offsets[i]))
        finally:
            os.close(descriptor)


def _list(
    worker: Worker, task: tuple[int, ClassTar]
) -> tuple[int, tuple[list[str], NDArray[np.int64], NDArray[np.int64]]]:
    number, tar = task
    members = sorted(
        member
        for member in tar_files(Archive(tar.path, tar.start, tar.size), f"{tar.name} in {tar.path}")
        if member[0].lower().endswith(IMAGE_ENDINGS) and not hidden(member[0])
    )
    worker.advance()
    names = [name for name, _, _ in members]
    sizes = np.array([size for _, size, _ in members], np.int64)
    offsets = np.array([offset for _, _, offset in members], np.int64) + tar.start
    return number, (names, sizes, offsets)
