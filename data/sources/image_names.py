"""Finds the image that a cell of a table means: by its path, its file name, or its name without an ending."""

from collections import defaultdict
from collections.abc import Sequence
from functools import lru_cache

from data.printable_text import composed
from data.sources.splits import split_of_name


class ImageNames:
    """The images of a source by the names that tables give them, in either of Unicode's two forms.

    Attributes:
        paths: of the images.
    """

    def __init__(self, paths: Sequence[str]):
        self.paths = paths
        self._by_name = _by_name(paths)
        self._by_lower_name: dict[str, list[int]] | None = None

    def find(self, cell: str, folder: str = "") -> list[int]:
        """Return the numbers of the images that a cell may mean; those below `folder` if there are any.

        The folders of a cell often are those of another machine. But ``train/1.jpg`` never means ``test/1.jpg``.
        """
        wanted = composed(plain_path(cell))
        name = wanted.rpartition("/")[2]
        found = self._by_name.get(name) or self._ignoring_case(name)
        if len(found) > 1 and not cell.isascii():  # two files may differ in nothing but that form
            same = plain_path(cell).rpartition("/")[2]
            found = [n for n in found if same in _file_names(self.paths[n])] or found
        if "/" in wanted:
            found = [number for number in found if not _of_other_split(wanted, composed(self.paths[number]))]
        if len(found) > 1:
            found = self._closest(found, wanted)
        inside = [number for number in found if f"/{self.paths[number]}".startswith(f"/{folder}/")] if folder else []
        return inside or found

    def in_other_folder(self, cell: str, number: int) -> bool:
        """Return whether a cell and an image both have a folder, and the folders directly above the file differ."""
        wanted, path = composed(plain_path(cell)), composed(self.paths[number])
        return "/" in wanted and "/" in path and _agreement(wanted, path) == 0

    def _ignoring_case(self, name: str) -> list[int]:
        if self._by_lower_name is None:
            self._by_lower_name = _by_name([path.lower() for path in self.paths])
        return self._by_lower_name.get(name.lower(), [])

    def _closest(self, numbers: list[int], wanted: str) -> list[int]:
        """Return the images whose folders agree best with those of the cell, from the last folder upwards."""
        agreements = [_agreement(wanted, composed(self.paths[number])) for number in numbers]
        return [number for number, agreement in zip(numbers, agreements) if agreement == max(agreements)]


def plain_path(cell: str) -> str:
    """Return the path in a cell with forward slashes."""
    return cell.replace("\\", "/").removeprefix("./")


def _agreement(one: str, other: str) -> int:
    """Return the number of equal folders of two paths, from the last folder upwards."""
    parts, above = one.split("/")[-2::-1], other.split("/")[-2::-1]
    return next((i for i, (a, b) in enumerate(zip(parts, above)) if a != b), min(len(parts), len(above)))


def _of_other_split(wanted: str, path: str) -> bool:
    """Return whether the folders of two paths name different splits.

    Only the two folders above a file count. Those further up may be anything, such as ``/home/dev``.
    """
    if wanted.endswith(path):  # the common case, without a look at the folders
        return False
    one, other = (_split_of_parents("/".join(found.split("/")[-3:-1])) for found in (wanted, path))
    return one is not None and other is not None and one != other


@lru_cache(maxsize=4096)
def _split_of_parents(folders: str) -> int | None:
    return next((split for part in folders.split("/")[::-1] if (split := split_of_name(part)) is not None), None)


def _by_name(paths: Sequence[str]) -> dict[str, list[int]]:
    """Return the numbers of the paths by file name, with and without its ending."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, path in enumerate(paths):
        for name in _file_names(composed(path)):
            found[name].append(number)
    return found


def _file_names(path: str) -> list[str]:
    """Return the name of a file with and without its ending."""
    name = path.rpartition("/")[2]
    return [name, name.rpartition(".")[0]]
