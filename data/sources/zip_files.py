"""The files of a zip, or of a zip inside a zip, as various programs write them."""

import struct
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path

import numpy as np

from data.images.inspection import Unreadable
from data.names import one_line
from data.sources.archives import Archive, UnpackedArchive
from data.sources.base import Names
from data.sources.files import Files
from recipes.errors import UserError

_LOCAL_HEADER, _LOCAL_MAGIC = 30, b"PK\3\4"  # bytes and beginning of the header in front of each member
_UTF8_FLAG = 0x800


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


def member_name(member: zipfile.ZipInfo) -> str:
    """Return the path of a zip's member, with forward slashes and without a leading "./".

    Some programs write UTF-8 without the flag that says so, and some write the backslashes of Windows.
    """
    name = member.filename
    if not member.flag_bits & _UTF8_FLAG:
        with suppress(UnicodeError):
            name = name.encode("cp437").decode("utf-8")
    return name.replace("\\", "/").removeprefix("./").lstrip("/")
