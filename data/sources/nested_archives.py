"""Archives inside a folder or a zip that holds no images itself, such as ``train.zip`` beside ``test.zip``."""

import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.image_formats import IMAGE_ENDINGS
from data.printable_text import printable
from data.sources.base import Names
from data.sources.files import Files, FolderFiles, hidden
from data.sources.open_files import ARCHIVE_ENDINGS, open_files, without_ending
from data.sources.zip_files import ZipFiles
from recipes.errors import UserError

_NUMBERED = re.compile(r"(.*?)(\d{3,})")
_GOOGLE_DRIVE = re.compile(
    r"(.*-\d{8}T\d{6}Z(?:-\d+)?-)(\d{3})"
)  # the name of a folder, the time, the number of the part


class NestedFiles(Files):
    """The files of a folder or zip and of the archives inside, each archive like a folder of its name.

    Attributes:
        archives: the folder of each archive.

    Args:
        outer: holds the archives.
        archives: the files of each archive, by the name of its folder.
        others: rows of `outer` that are not archives.
        joined: the archives are parts of one tree, without a folder for each.
    """

    def __init__(self, outer: Files, archives: dict[str, Files], others: list[int], joined: bool = False):
        self.place, self.dot_files = outer.place, outer.dot_files
        self.empty_folders, self.broken_links = outer.empty_folders, outer.broken_links
        self.archives = list(archives)
        self._archives, self._others = archives, others
        self._parts: list[Files] = [outer, *archives.values()]
        listed = [(outer.names[row], int(outer.sizes[row]), 0, row) for row in others]
        for part, (folder, files) in enumerate(archives.items(), 1):
            prefix = "" if joined else f"{folder}/"
            listed += [(prefix + name, int(files.sizes[row]), part, row) for row, name in enumerate(files.names)]
        listed.sort()
        self.names = Names(name for name, _, _, _ in listed)
        self.sizes = np.array([size for _, size, _, _ in listed], np.int64)
        self._part = np.array([part for _, _, part, _ in listed], np.int32)
        self._row = np.array([row for _, _, _, row in listed], np.int64)

    def read(self, i: int) -> bytes:
        return self._parts[int(self._part[i])].read(int(self._row[i]))

    def joined(self) -> "NestedFiles":
        """Return the files of archives that are parts of one tree, as Google Drive makes them of a large folder.

        These are archives with its names, and numbered ones with one and the same folder in each. Others are returned
        as they are.

        Raises:
            UserError: a part is missing, or two of them hold a file of the same name.
        """
        tops = {
            name.partition("/")[0]
            for files in self._archives.values()
            for name in files.names
            if name.lower().endswith(IMAGE_ENDINGS) and not hidden(name)
        }
        one_folder = len(tops) == 1 and _are_numbered(self.archives)
        from_google = all(map(_GOOGLE_DRIVE.fullmatch, self.archives))
        if len(self.archives) < 2 or not (one_folder or from_google):
            return self
        if from_google:
            _require_every_part(self.archives, self.place)
        found = NestedFiles(self._parts[0], self._archives, self._others, joined=True)
        if again := [name for name, count in Counter(found.names).items() if count > 1 and not hidden(name)]:
            raise UserError(
                f"several archives in {self.place} hold {printable(again[0])}: leave one download of each part there"
            )
        return found


def nested_archives(files: Files) -> NestedFiles | None:
    """Return the files with those of the archives inside; None if there are images outside, or no archives.

    A folder may hold archives of every kind, and a zip may hold zips. Archives further inside are not opened.

    Raises:
        UserError: an archive is damaged.
    """
    if isinstance(files, FolderFiles):
        endings: tuple[str, ...] = ARCHIVE_ENDINGS
    elif isinstance(files, ZipFiles):
        endings = (".zip",)
    else:
        return None
    inner: list[int] = []
    others: list[int] = []
    for row, name in enumerate(files.names):
        if hidden(name):
            continue
        if name.lower().endswith(IMAGE_ENDINGS):
            return None
        (inner if name.lower().endswith(endings) else others).append(row)
    if not inner:
        return None
    names = [files.names[row] for row in inner]
    folders = [without_ending(name) for name in names]
    if len(set(folders)) < len(folders):  # e.g. images.zip beside images.tar
        folders = names
    return NestedFiles(files, {folder: _opened(files, name) for folder, name in zip(folders, names)}, others)


def require_no_shards(files: NestedFiles) -> None:
    """Check that the archives are no shards or parts of one data set, each of which would become a class.

    Raises:
        UserError: they hold labels of WebDataset samples, or have consecutive numbers, such as ``part-000.zip`` and
            ``part-001.zip``, and no class folders inside.
    """
    if any(name.endswith(".cls") for name in files.names) and any(
        name.lower().endswith(IMAGE_ENDINGS) for name in files.names
    ):
        raise UserError(
            f"the archives in {files.place} hold .cls files like WebDataset shards, but are not read as such: "
            f"the files of a sample need one name (0001.jpg, 0001.cls), and shards in folders need a pattern, e.g. "
            f"'{files.place}/*/*.tar'"
        )
    if not _are_numbered(files.archives):
        return
    inside = {
        name.removeprefix(folder).rpartition("/")[0]
        for folder in files.archives
        for name in files.names
        if name.startswith(f"{folder}/") and name.lower().endswith(IMAGE_ENDINGS)
    }
    if len(inside) == 1:
        raise UserError(
            f"the archives in {files.place} ({files.archives[0]}, {files.archives[1]}, …) are numbered like parts of "
            f"one data set and hold no class folders: give a table of the labels with --labels"
        )


def _are_numbered(names: Sequence[str]) -> bool:
    """Return whether names are consecutively numbered, from 0 or 1 on, such as ``part-001`` and ``part-002``."""
    parts = [_NUMBERED.fullmatch(name) for name in names]
    numbers = sorted(int(part[2]) for part in parts if part)
    prefixes = {part[1] if part else None for part in parts}
    return len(parts) >= 2 and len(prefixes) == 1 and numbers in ([*range(len(parts))], [*range(1, len(parts) + 1)])


def _require_every_part(names: Sequence[str], place: str) -> None:
    """Raise a `UserError` if Google Drive's numbers of the parts have a gap."""
    numbers: dict[str, set[int]] = defaultdict(set)
    for name in names:
        if part := _GOOGLE_DRIVE.fullmatch(name):
            numbers[part[1]].add(int(part[2]))
    for prefix, found in numbers.items():
        if missing := set(range(1, max(found))) - found:
            raise UserError(f"{place} lacks {prefix}{min(missing):03d}, a part of one download: add it")


def _opened(files: Files, name: str) -> Files:
    return open_files(files.root / name) if isinstance(files, FolderFiles) else ZipFiles(Path(files.place), name)
