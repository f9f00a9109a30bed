"""The files of a folder or an archive: listed once, then read one by one from any process."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.sources.base import Names


class Files(ABC):
    """Named files in a fixed order, sorted by name.

    Attributes:
        place: the name of the folder or archive in messages.
        names: relative paths with forward slashes.
        sizes: int64 ``[n]``, in bytes.
        empty_folders: folders without any file in them; always empty for archives.
        broken_links: symbolic links that lead to nothing; always empty for archives.
    """

    place: str
    names: Names
    sizes: NDArray[np.int64]
    empty_folders: Sequence[str] = ()
    broken_links: Sequence[str] = ()

    @abstractmethod
    def read(self, i: int) -> bytes:
        """Return the contents of file `i`.

        Raises:
            Unreadable: its stored bytes are damaged.
            OSError: the folder or archive cannot be read.
        """


def hidden(path: str) -> bool:
    """Return whether a file belongs to the operating system: dot files, and the copies that macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


class FolderFiles(Files):
    """The files below a folder, following symbolic links."""

    def __init__(self, root: Path):
        self.place, self.root = str(root), root
        empty: list[str] = []
        broken: list[str] = []
        found = sorted(_walk(str(root), "", empty, broken, ()))
        self.names = Names(name for name, _ in found)
        self.sizes = np.array([size for _, size in found], np.int64)
        self.empty_folders, self.broken_links = empty, broken

    def read(self, i: int) -> bytes:
        return (self.root / self.names[i]).read_bytes()


def _walk(
    folder: str, prefix: str, empty: list[str], broken: list[str], above: tuple[str, ...]
) -> Iterator[tuple[str, int]]:
    """Yield path and size of each file below a folder.

    Add the folders that hold nothing to `empty`, and the links that lead to nothing to `broken`.

    `above` are the real paths of the folders above. A link to one of them is skipped, because following it would never
    end.
    """
    above = (*above, os.path.realpath(folder))
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".")]
        if not found and prefix:
            empty.append(prefix.rstrip("/"))
        for entry in found:
            if entry.is_dir():
                if not (entry.is_symlink() and os.path.realpath(entry.path) in above):
                    yield from _walk(entry.path, f"{prefix}{entry.name}/", empty, broken, above)
            elif entry.is_file():
                yield prefix + entry.name, entry.stat().st_size
            elif entry.is_symlink():
                broken.append(prefix + entry.name)
