"""Bytes of an archive, read by position, so that a forked process never moves another's place in a shared file."""

import bz2
import gzip
import io
import lzma
import os
import tempfile
import zipfile
import zlib
from pathlib import Path

from recipes.errors import UserError


class Archive:
    """A file or a part of it, read by position; each process opens the file for itself when it first reads."""

    def __init__(self, path: Path, start: int = 0, size: int | None = None):
        self.path, self._start = path, start
        self.size = path.stat().st_size if size is None else size
        self._file = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_file": None}

    def read(self, offset: int, size: int) -> bytes:
        if self._file is None:
            self._file = self._opened()
        size = max(0, min(size, self.size - offset))
        return os.pread(self._file.fileno(), size, self._start + offset)

    def section(self, offset: int, size: int) -> "Archive":
        return Archive(self.path, self._start + offset, size)

    def stream(self) -> io.BufferedReader:
        """The same bytes as a seekable stream, for the standard library's zip reader."""
        return io.BufferedReader(ArchiveStream(self), 1 << 16)

    def _opened(self):
        return self.path.open("rb", buffering=0)


class UnpackedArchive(Archive):
    """A compressed file, unpacked into a temporary file that has no name and so leaves with its last process.

    Forked processes share it. A process that got this by pickle unpacks it again.
    """

    def __init__(self, path: Path, member: str | None):
        self.path, self._start, self._member = path, 0, member
        self._file = self._opened()
        self.size = os.fstat(self._file.fileno()).st_size

    def section(self, offset: int, size: int) -> "Archive":
        raise UserError(f"{self.path} has zips inside zips inside zips: unpack it first")

    def _opened(self):
        unpacked = tempfile.TemporaryFile()
        try:
            if self._member is None:
                self._decompress(unpacked)
            else:
                with zipfile.ZipFile(self.path) as archive, archive.open(self._member) as packed:
                    _copy(packed, unpacked)
        except (OSError, EOFError, zlib.error, zipfile.BadZipFile) as error:
            raise UserError(
                f"{self.path} cannot be unpacked into {tempfile.gettempdir()} ({error}): "
                f"it is damaged or the disk is full"
            ) from None
        unpacked.flush()
        return unpacked

    def _decompress(self, unpacked) -> None:
        name = self.path.name.lower()
        opener = bz2.open if name.endswith("bz2") else lzma.open if name.endswith("xz") else gzip.open
        try:
            with opener(self.path) as packed:
                _copy(packed, unpacked)
        except lzma.LZMAError as error:
            raise OSError(str(error)) from None


def _copy(packed, unpacked) -> None:
    while chunk := packed.read(1 << 20):
        unpacked.write(chunk)


class ArchiveStream(io.RawIOBase):
    """An archive as an unbuffered, seekable stream."""

    def __init__(self, archive: Archive):
        self._archive, self._position = archive, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._archive.size}[whence]
        if base + offset < 0:
            raise OSError(22, "negative position")
        self._position = base + offset
        return self._position

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer) -> int:
        found = self._archive.read(self._position, len(buffer))
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)
