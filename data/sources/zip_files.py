"""The files of a zip, or of a zip inside a zip, as various programs write them."""

import posixpath
import stat
import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from data.image_formats import PICTURE_ENDINGS
from data.images.inspection import Unreadable
from data.printable_text import one_line
from data.sources.archives import Archive, UnpackedArchive, outside_link
from data.sources.base import Names
from data.sources.files import Files
from recipes.errors import UserError

_LOCAL_HEADER, _LOCAL_MAGIC = 30, b"PK\3\4"  # bytes and beginning of the header in front of each member
_UTF8_FLAG = 0x800
_UNIX = 3  # the system that wrote a member, whose attributes then are those of a file of Unix


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
                # A later member of the same name replaces an earlier one, as it does when a zip is unpacked.
                by_name = {member_name(member): member for member in archive.infolist() if not member.is_dir()}
                by_name = _links_followed(archive, by_name, self.place)
        except UserError:
            raise
        except (zipfile.BadZipFile, EOFError, ValueError, struct.error) as error:
            raise UserError(one_line(f"{self.place} is not a whole zip ({error}): download it again")) from None
        names = sorted(by_name)
        members = [by_name[name] for name in names]
        self.names = Names(names)
        self._stored_names = Names(member.filename for member in members)
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
        """Return the offset of a member's bytes: only its own header has it, not the directory at the zip's end.

        Raises:
            Unreadable: the member is encrypted, compressed by another method, or damaged.
        """
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
            return UnpackedArchive(self._archive.path, self._stored_names[i])
        except Unreadable as damage:
            raise UserError(f"{name} in {self.place} cannot be read: {damage}; download it again") from None


def _links_followed(
    archive: zipfile.ZipFile, by_name: dict[str, zipfile.ZipInfo], place: str
) -> dict[str, zipfile.ZipInfo]:
    """Return the members by name, with what a symbolic link means in place of the link, whose bytes are a path.

    Raises:
        UserError: an image is a link to something outside of the archive.
    """
    found = {name: member for name, member in by_name.items() if not _is_link(member)}
    for name in by_name.keys() - found.keys():
        target = _target(archive, name, by_name[name])
        if target in found:
            found[name] = found[target]
        elif name.lower().endswith(PICTURE_ENDINGS):
            raise outside_link(name, target, place, "zip without --symlinks")
    return found


def _is_link(member: zipfile.ZipInfo) -> bool:
    return stat.S_ISLNK(member.external_attr >> 16) and member.create_system == _UNIX


def _target(archive: zipfile.ZipFile, name: str, link: zipfile.ZipInfo) -> str:
    """Return the path in the archive that a link leads to; empty if the link cannot be read."""
    try:
        path = archive.read(link).decode("utf-8", "surrogateescape")
    except (zipfile.BadZipFile, EOFError, RuntimeError, zlib.error, NotImplementedError):  # damaged or encrypted
        return ""
    return posixpath.normpath(posixpath.join(posixpath.dirname(name), path))


def member_name(member: zipfile.ZipInfo) -> str:
    """Return the path of a zip's member, with forward slashes and without a leading "./".

    Some programs write UTF-8 without the flag that says so, and some write the backslashes of Windows.
    """
    name = member.filename
    if not member.flag_bits & _UTF8_FLAG:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/").removeprefix("./").lstrip("/")
