"""The files of a folder or an archive: listed once, then read one by one from any process."""

import os
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.image_formats import IMAGE_ENDINGS
from data.sources.base import Names


class Files(ABC):
    """Named files in a fixed order, sorted by name.

    Attributes:
        place: the name of the folder or archive in messages.
        names: relative paths with forward slashes.
        sizes: int64 ``[n]``, in bytes.
        empty_folders: folders without any file in them; always empty for archives.
        broken_links: symbolic links that lead to nothing; always empty for archives.
        dot_files: dot folders, and images that are dot files; always empty for archives, whose `names` have them.
    """

    place: str
    names: Names
    sizes: NDArray[np.int64]
    empty_folders: Sequence[str] = ()
    broken_links: Sequence[str] = ()
    dot_files: Sequence[str] = ()

    @abstractmethod
    def read(self, i: int) -> bytes:
        """Return the contents of file `i`.

        Raises:
            Unreadable: its stored bytes are damaged.
            OSError: the folder or archive cannot be read.
        """


# macOS adds copies to archives, a Synology makes thumbnails, Windows keeps what was deleted.
_SYSTEM_FOLDERS = {"__MACOSX", "@eaDir", "$RECYCLE.BIN", "System Volume Information"}


def hidden(path: str) -> bool:
    """Return whether a file is a dot file, lies in a dot folder, or belongs to the operating system."""
    return any(part.startswith(".") or part in _SYSTEM_FOLDERS for part in path.split("/"))


def hidden_images(files: Files) -> list[str]:
    """Return the images and folders that only the dot in front of their names hides, such as a class ``.net``."""
    names = [name for name in files.names if name.lower().endswith(IMAGE_ENDINGS) and hidden(name)]
    return [*files.dot_files, *(name for name in names if not _of_system(name.split("/")))]


def _of_system(parts: list[str]) -> bool:
    return parts[-1].startswith("._") or any(part in _SYSTEM_FOLDERS for part in parts)


class FolderFiles(Files):
    """The files below a folder, following symbolic links."""

    empty_folders: list[str]
    broken_links: list[str]
    dot_files: list[str]

    def __init__(self, root: Path):
        self.place, self.root = str(root), root
        self.empty_folders, self.broken_links, self.dot_files = [], [], []
        found = sorted(self._walk(str(root), "", ()))
        self.names = Names(name for name, _ in found)
        self.sizes = np.array([size for _, size in found], np.int64)

    def read(self, i: int) -> bytes:
        return (self.root / self.names[i]).read_bytes()

    def _walk(self, folder: str, prefix: str, above: tuple[str, ...]) -> Iterator[tuple[str, int]]:
        """Yield path and size of each file below a folder, and note what is empty, broken or hidden.

        `above` are the real paths of the folders above. A link to one of them is skipped, because following it would
        never end.
        """
        above = (*above, os.path.realpath(folder))
        with os.scandir(folder) as entries:
            found = list(entries)
        self.dot_files += [prefix + entry.name for entry in found if _is_hidden_image(entry)]
        found = [entry for entry in found if not hidden(entry.name)]
        if not found and prefix:
            self.empty_folders.append(prefix.rstrip("/"))
        for entry in found:
            if entry.is_dir():
                if not (entry.is_symlink() and os.path.realpath(entry.path) in above):
                    yield from self._walk(entry.path, f"{prefix}{entry.name}/", above)
            elif entry.is_file():
                yield prefix + entry.name, entry.stat().st_size
            elif entry.is_symlink():
                self.broken_links.append(prefix + entry.name)


def _is_hidden_image(entry: os.DirEntry[str]) -> bool:
    if not entry.name.startswith(".") or entry.name.startswith("._"):
        return False
    return entry.is_dir() or entry.name.lower().endswith(IMAGE_ENDINGS)
