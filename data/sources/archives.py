"""Reads the bytes of an archive by position.

Forked processes share the position of an open file, so seeking in one would disturb the others; `os.pread` does not
seek.
"""

import bz2
import gzip
import io
import lzma
import os
import tarfile
import tempfile
import zipfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from typing_extensions import Buffer

from data.printable_text import one_line, printable
from recipes.errors import UserError

_MAGIC = {
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",  # an empty one
    b"\x1f\x8b": "gzip",
    b"BZh": "bz2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"7z\xbc\xaf\x27\x1c": "7z",
    b"Rar!": "rar",
}
COMPRESSED = ("gzip", "bz2", "xz", "zstd")  # kinds of a single compressed file, mostly a tar
DECOMPRESSION_ERRORS = (OSError, EOFError, zlib.error, lzma.LZMAError)


class Archive:
    """A file or a section of one, read by position. Each process opens the file itself when it first reads."""

    def __init__(self, path: Path, start: int = 0, size: int | None = None):
        self.path, self._start = path, start
        self.size = path.stat().st_size if size is None else size
        self._file: IO[bytes] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_file": None}

    def read(self, offset: int, size: int) -> bytes:
        if self._file is None:
            self._file = self._opened()
        size = max(0, min(size, self.size - offset))
        return os.pread(self._file.fileno(), size, self._start + offset)

    def section(self, offset: int, size: int) -> "Archive":
        """Return `size` bytes from `offset` on as an archive of its own."""
        return Archive(self.path, self._start + offset, size)

    def stream(self) -> io.BufferedReader:
        """Return the same bytes as a seekable stream, which the standard library's zip reader needs."""
        return io.BufferedReader(ArchiveStream(self), 1 << 16)

    def _opened(self) -> IO[bytes]:
        return self.path.open("rb", buffering=0)


class UnpackedArchive(Archive):
    """A compressed file, unpacked into a temporary file without a name, which is gone when its last process ends.

    Forked processes share the file. A process that receives this by pickle unpacks it again.

    Args:
        path: of the compressed file.
        member: name of a member of the zip at `path`; None: the whole file is compressed.
    """

    def __init__(self, path: Path, member: str | None):
        self.path, self._start, self._member = path, 0, member
        self._file = self._opened()
        self.size = os.fstat(self._file.fileno()).st_size

    def section(self, offset: int, size: int) -> "Archive":
        raise UserError(f"{self.path} has zips inside zips inside zips: unpack it first")

    def _opened(self) -> IO[bytes]:
        unpacked = tempfile.TemporaryFile()  # noqa: SIM115  it stays open for as long as this object
        try:
            if self._member is None:
                decompress(self.path, unpacked)
            else:
                with zipfile.ZipFile(self.path) as archive, archive.open(self._member) as packed:
                    _copy(packed, unpacked)
        except (*DECOMPRESSION_ERRORS, zipfile.BadZipFile) as error:
            raise UserError(
                one_line(
                    f"{self.path} cannot be unpacked into {tempfile.gettempdir()} ({error}): "
                    f"it is damaged or the disk is full"
                )
            ) from None
        unpacked.flush()
        return unpacked


def decompress(path: Path, unpacked: IO[bytes]) -> None:
    """Write the contents of a compressed file, of the kind gzip, bz2, xz or zstd.

    Raises:
        UserError: a package is missing that reads this kind.
        Exception: one of `DECOMPRESSION_ERRORS`; the file is damaged or the disk is full.
    """
    kind = archive_kind(path)
    if kind == "zstd":
        return _unpack_zstandard(path, unpacked)
    opener: dict[str | None, Callable[[Path], io.BufferedIOBase]] = {"bz2": bz2.BZ2File, "xz": lzma.LZMAFile}
    with opener.get(kind, gzip.GzipFile)(path) as packed:
        _copy(packed, unpacked)


@contextmanager
def open_tar(path: Path) -> Iterator[tarfile.TarFile]:
    """Yield a tar, compressed or not, whose members are read from the first to the last.

    Raises:
        UserError: a package is missing that reads this kind.
        tarfile.TarError: the tar is damaged or ends too early; so is a compressed one on `DECOMPRESSION_ERRORS`.
    """
    if archive_kind(path) != "zstd":
        with tarfile.open(path, "r:*") as tar:
            yield tar
        return
    zstandard = _zstandard(path)
    decompressor = zstandard.ZstdDecompressor()
    try:
        with (
            path.open("rb") as packed,
            decompressor.stream_reader(packed, read_across_frames=True) as stream,
            tarfile.open(fileobj=stream, mode="r|") as tar,
        ):
            yield tar
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from None


def archive_kind(path: Path) -> str | None:
    """Return the kind of an archive, or None, by its contents, because the ending of its name is often wrong.

    The kinds are "zip", "tar", "gzip", "bz2", "xz", "zstd", "7z" and "rar".
    """
    with path.open("rb") as stream:
        start = stream.read(512)
    for magic, kind in _MAGIC.items():
        if start.startswith(magic):
            return kind
    return "tar" if start[257:262] == b"ustar" else None


def _zstandard(path: Path) -> Any:
    try:
        import zstandard
    except ImportError:
        raise UserError(f"{path} is compressed with Zstandard: `pip install zstandard`, or unpack it first") from None
    return zstandard


def _unpack_zstandard(path: Path, unpacked: IO[bytes]) -> None:
    zstandard = _zstandard(path)
    try:
        with path.open("rb") as packed:
            zstandard.ZstdDecompressor().copy_stream(packed, unpacked)
    except zstandard.ZstdError as error:
        raise OSError(str(error)) from None


def _copy(packed: IO[bytes] | io.BufferedIOBase, unpacked: IO[bytes]) -> None:
    while chunk := packed.read(1 << 20):
        unpacked.write(chunk)


def outside_link(name: str, target: str, place: str, command: str) -> UserError:
    """Return the error for an image that is a link to something that is not in its archive."""
    return UserError(
        f"{printable(name)} in {place} is a link to {printable(target) or 'nothing'}, which is not in the archive: "
        f"make the archive again with the files that the links mean ({command})"
    )


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

    def readinto(self, buffer: Buffer, /) -> int:
        view = memoryview(buffer)
        found = self._archive.read(self._position, len(view))
        view[: len(found)] = found
        self._position += len(found)
        return len(found)
