"""The files of a folder, a zip or a tar: listed once, then read one by one from any process."""

import os
import struct
import tarfile
import zipfile
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.images.inspection import Unreadable
from data.reading.tar_members import tar_members
from data.sources.archives import Archive, ArchiveStream, UnpackedArchive
from data.sources.base import Names
from recipes.errors import UserError

TAR_ENDINGS = (".tar", ".tar.gz", ".tgz", ".tar.bz2", ".tar.xz")
_LOCAL_HEADER, _LOCAL_MAGIC = 30, b"PK\3\4"  # bytes and beginning of the header in front of each member of a zip


class Files(ABC):
    """Named files in a fixed order, sorted by name.

    Attributes:
        place: its name in messages.
        names: relative paths with forward slashes.
        sizes: in bytes.
        empty_folders: folders without any file in them, which only a folder on a disk can tell.
    """

    place: str
    names: Names
    sizes: NDArray[np.int64]
    empty_folders: Sequence[str] = ()

    @abstractmethod
    def read(self, i: int) -> bytes:
        """Return the contents of file `i`.

        Raises:
            Unreadable: its stored bytes are damaged.
            OSError: the folder or archive cannot be read.
        """


def open_files(path: Path) -> Files:
    """Return the files of a folder, a zip or a tar, compressed or not.

    Raises:
        UserError: there is no such path, it is none of these kinds, or it is damaged.
    """
    try:
        if path.is_dir():
            return FolderFiles(path)
        if not path.exists():
            raise UserError(f"there is no {path}: give a folder, a zip or a tar of images, or the word `digits`")
        if path.name.lower().endswith(".zip"):
            return ZipFiles(path)
        if path.name.lower().endswith(TAR_ENDINGS):
            return TarFiles(path)
    except OSError as error:
        raise UserError(f"{error.filename or path} cannot be read: {error.strerror or error}") from None
    raise UserError(f"{path} is no folder, zip or tar: sources of other kinds are not known")


def hidden(path: str) -> bool:
    """Return whether a file belongs to the operating system: dot files, and the copies that macOS adds to archives."""
    return any(part.startswith(".") or part == "__MACOSX" for part in path.split("/"))


class FolderFiles(Files):
    """The files below a folder, following symbolic links."""

    def __init__(self, root: Path):
        self.place, self.root = str(root), root
        empty: list[str] = []
        found = sorted(_walk(str(root), "", empty))
        self.names = Names(name for name, _ in found)
        self.sizes = np.array([size for _, size in found], np.int64)
        self.empty_folders = empty

    def read(self, i: int) -> bytes:
        return (self.root / self.names[i]).read_bytes()


def _walk(folder: str, prefix: str, empty: list[str]) -> Iterator[tuple[str, int]]:
    """Yield path and size of each file below a folder; add the folders that hold nothing to `empty`."""
    with os.scandir(folder) as entries:
        found = [entry for entry in entries if not entry.name.startswith(".")]
        if not found and prefix:
            empty.append(prefix.rstrip("/"))
        for entry in found:
            if entry.is_dir():
                yield from _walk(entry.path, f"{prefix}{entry.name}/", empty)
            elif entry.is_file():  # false for a broken link
                yield prefix + entry.name, entry.stat().st_size


class ZipFiles(Files):
    """The members of a zip, or of a zip inside a zip.

    Args:
        path: of the outer zip.
        inside: name of the inner zip. It is unpacked to an unnamed temporary file unless it is stored uncompressed.
    """

    def __init__(self, path: Path, inside: str | None = None):
        self.place = str(path) if inside is None else f"{inside} in {path}"
        self._archive = Archive(path) if inside is None else ZipFiles(path).member(inside)
        try:
            with zipfile.ZipFile(self._archive.stream()) as archive:
                members = sorted(archive.infolist(), key=lambda member: member.filename)
        except (zipfile.BadZipFile, EOFError, ValueError, struct.error) as error:
            raise UserError(f"{self.place} is not a whole zip ({error}): download it again") from None
        members = [member for member in members if not member.is_dir()]
        self.names = Names(member.filename for member in members)
        self.sizes = np.array([member.file_size for member in members], np.int64)
        self._stored = np.array([member.compress_size for member in members], np.int64)
        self._headers = np.array([member.header_offset for member in members], np.int64)
        self._methods = np.array([member.compress_type for member in members], np.uint16)
        self._encrypted = np.array([member.flag_bits & 1 for member in members], bool)
        self._checksums = np.array([member.CRC for member in members], np.uint32)

    def read(self, i: int) -> bytes:
        found = self._archive.read(self._start(i), int(self._stored[i]))
        try:
            if self._methods[i] == zipfile.ZIP_DEFLATED:
                found = zlib.decompressobj(-zlib.MAX_WBITS).decompress(found, int(self.sizes[i]) + 1)
        except zlib.error:
            raise Unreadable("its compressed bytes in the zip are damaged") from None
        if zlib.crc32(found) != self._checksums[i]:
            raise Unreadable("its checksum in the zip is wrong")
        return found

    def _start(self, i: int) -> int:
        """Return the offset of a member's bytes, which only its own header tells: the directory at the end does not."""
        if self._encrypted[i]:
            raise Unreadable("it is encrypted in the zip")
        if self._methods[i] not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise Unreadable("it is compressed in a way that only newer zip programs read")
        header = self._archive.read(int(self._headers[i]), _LOCAL_HEADER)
        if len(header) < _LOCAL_HEADER or header[:4] != _LOCAL_MAGIC:
            raise Unreadable("its header in the zip is damaged")
        name_length, extra_length = struct.unpack_from("<HH", header, 26)
        start: int = int(self._headers[i]) + _LOCAL_HEADER + name_length + extra_length
        return start

    def member(self, name: str) -> Archive:
        """Return the member of that name as an archive of its own."""
        i = list(self.names).index(name)
        try:
            if self._methods[i] == zipfile.ZIP_STORED:
                return self._archive.section(self._start(i), int(self.sizes[i]))
            return UnpackedArchive(self._archive.path, name)
        except Unreadable as damage:
            raise UserError(f"{name} in {self.place} cannot be read: {damage}; download it again") from None


class TarFiles(Files):
    """The members of a tar. A compressed tar is first unpacked to an unnamed temporary file."""

    def __init__(self, path: Path):
        self.place = str(path)
        self._archive = Archive(path) if path.name.lower().endswith(".tar") else UnpackedArchive(path, None)
        members = sorted(tar_files(self._archive, str(path)))
        self.names = Names(name for name, _, _ in members)
        self.sizes = np.array([size for _, size, _ in members], np.int64)
        self._offsets = np.array([offset for _, _, offset in members], np.int64)

    def read(self, i: int) -> bytes:
        found = self._archive.read(int(self._offsets[i]), int(self.sizes[i]))
        if len(found) != self.sizes[i]:
            raise Unreadable("the tar ends inside it")
        return found


def tar_files(archive: Archive, place: str) -> Iterator[tuple[str, int, int]]:
    """Yield name, size and offset within the archive of each file in an uncompressed tar; reads headers only.

    Raises:
        UserError: the tar is damaged; names `place`.
    """
    try:
        # Unbuffered: a buffer would also read the images between the headers.
        with tarfile.open(fileobj=ArchiveStream(archive), mode="r:") as tar:
            for member in tar_members(tar):
                if member.isreg():
                    yield member.name.removeprefix("./"), member.size, member.offset_data
    except (tarfile.TarError, EOFError) as error:
        raise UserError(f"{place} is not a whole tar ({error}): download it again") from None
