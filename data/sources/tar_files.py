"""The files of a tar, compressed or not."""

import posixpath
import tarfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.image_formats import PICTURE_ENDINGS
from data.images.inspection import Unreadable
from data.printable_text import one_line
from data.reading.tar_members import tar_members
from data.sources.archives import Archive, ArchiveStream, UnpackedArchive, archive_kind, outside_link
from data.sources.base import Names
from data.sources.files import Files
from recipes.errors import UserError


class TarFiles(Files):
    """The members of a tar. A compressed tar is first unpacked to an unnamed temporary file."""

    def __init__(self, path: Path):
        self.place = str(path)
        self._archive = Archive(path) if archive_kind(path) in ("tar", None) else UnpackedArchive(path, None)
        members = sorted({member[0]: member for member in tar_files(self._archive, str(path))}.values())
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

    A link to another member yields that member's bytes under the link's name.

    Raises:
        UserError: the tar is damaged, or an image is a link to something outside it; names `place`.
    """
    places: dict[str, tuple[int, int]] = {}
    links: list[tuple[str, str]] = []
    try:
        # Unbuffered: a buffer would also read the images between the headers.
        with tarfile.open(fileobj=ArchiveStream(archive), mode="r:") as tar:
            for member in tar_members(tar):
                name = _plain(member.name)
                if member.isreg():
                    places[name] = (member.size, member.offset_data)
                    yield name, member.size, member.offset_data
                elif member.islnk():
                    links.append((name, _plain(member.linkname)))
                elif member.issym():
                    links.append((name, posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))))
    except (tarfile.TarError, EOFError, ValueError, OverflowError) as error:
        raise UserError(one_line(f"{place} is not a whole tar ({error}): download it again")) from None
    for name, target in links:
        if target in places:
            places[name] = places[target]
            yield name, *places[target]
        elif name.lower().endswith(PICTURE_ENDINGS):
            raise outside_link(name, target, place, "tar --dereference")


def _plain(name: str) -> str:
    return name.removeprefix("./")
