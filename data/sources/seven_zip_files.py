"""The files of a .7z archive, which py7zr unpacks.

Such an archive is compressed as a whole, so no single file can be read from it. All are unpacked into a temporary file
without a name first.
"""

import os
import tempfile
from pathlib import Path
from typing import IO, Any

import numpy as np

from data.image_formats import PICTURE_ENDINGS
from data.printable_text import one_line, printable
from data.sources.archives import Archive
from data.sources.base import Names
from data.sources.files import Files
from recipes.errors import UserError


class SevenZipFiles(Files):
    """The members of a .7z archive."""

    def __init__(self, path: Path):
        self.place = str(path)
        sizes = dict(sorted(_sizes(path).items()))
        self.names = Names(sizes)
        self.sizes = np.array(list(sizes.values()), np.int64)
        self._starts = np.cumsum(self.sizes) - self.sizes
        self._archive = _UnpackedSevenZip(path, dict(zip(sizes, self._starts.tolist())), int(self.sizes.sum()))

    def read(self, i: int) -> bytes:
        return self._archive.read(int(self._starts[i]), int(self.sizes[i]))


class _UnpackedSevenZip(Archive):
    """The unpacked members one after the other; `starts` is the position of each. Forked processes share the file."""

    def __init__(self, path: Path, starts: dict[str, int], size: int):
        super().__init__(path, 0, size)
        self._starts = starts
        self._file = self._opened()

    def _opened(self) -> IO[bytes]:
        from py7zr.io import Py7zIO, WriterFactory

        unpacked = tempfile.TemporaryFile()  # noqa: SIM115  it stays open for as long as this object
        starts = self._starts

        class Member(Py7zIO):
            """Writes one member to its position. Members of several groups are unpacked at the same time."""

            def __init__(self, name: str):
                self._start, self._written = starts[name], 0

            def write(self, data: bytes | bytearray) -> int:
                os.pwrite(unpacked.fileno(), data, self._start + self._written)
                self._written += len(data)
                return len(data)

            def read(self, size: int | None = None) -> bytes:
                return b""

            def seek(self, offset: int, whence: int = 0) -> int:
                return 0

            def flush(self) -> None:
                pass

            def size(self) -> int:
                return self._written

        class Members(WriterFactory):
            def create(self, name: str) -> Py7zIO:
                return Member(name)

        try:
            with _open(self.path) as archive:
                archive.extractall(factory=Members())
        except Exception as error:
            raise _unreadable(self.path, error) from None
        return unpacked


def _sizes(path: Path) -> dict[str, int]:
    """Return the size of each file in the archive by its name."""
    try:
        with _open(path) as archive:
            if archive.needs_password():
                raise UserError(f"{path} is encrypted: unpack it and give the folder")
            members = archive.list()
    except UserError:
        raise
    except Exception as error:
        raise _unreadable(path, error) from None
    for member in members:
        if member.is_symlink and member.filename.lower().endswith(PICTURE_ENDINGS):
            raise UserError(f"{printable(member.filename)} in {path} is a link: unpack it and give the folder")
    return {member.filename: member.uncompressed for member in members if not member.is_directory}


def _open(path: Path) -> Any:  # py7zr is optional
    try:
        from py7zr import SevenZipFile
    except ImportError:
        raise UserError(f"{path} is a 7z archive: `pip install py7zr` makes it readable, or unpack it first") from None
    return SevenZipFile(path)


def _unreadable(path: Path, error: Exception) -> UserError:  # py7zr raises almost any exception on damaged bytes
    return UserError(
        one_line(
            f"{path} cannot be unpacked into {tempfile.gettempdir()} ({error or type(error).__name__}): it is damaged "
            f"or the disk is full"
        )
    )
