"""Labels from tables: images in any folders, and tables (`data.sources.tables`) that name the class of each.

These are the layouts of Kaggle's competitions (``train.csv`` beside ``train/``) and of image folders with a
``metadata.csv``.
"""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np
from numpy.typing import NDArray

from data.names import printable
from data.sources.base import Listing, Names, Source, require_classes
from data.sources.class_folders import FileSource, image_paths
from data.sources.files import Files, hidden
from data.sources.ignored_files import ignored_notes
from data.sources.label_columns import LabelledRows, labelled_rows, names_images
from data.sources.splits import TRAIN, split_of_name, with_validation
from data.sources.tables import TABLE_ENDINGS, Table, read_table
from recipes.errors import UserError

_LOOKED_AT = 200  # rows that are checked of a table that may only be suggested in a message
_LARGEST_OFFERED = 64 * 2**20  # bytes; a larger table is not read just for that message


class ImageNames:
    """Finds the image that a cell of a table means: by its path, its file name, or its name without an ending."""

    def __init__(self, paths: Sequence[str]):
        self.paths = paths
        self._by_name = _by_name(paths)
        self._by_lower_name: dict[str, list[int]] | None = None

    def find(self, cell: str, folder: str = "") -> list[int]:
        """Return the numbers of the images that a cell may mean; those below `folder` if there are any."""
        wanted = cell.replace("\\", "/").removeprefix("./")
        name = wanted.rpartition("/")[2]
        found = self._by_name.get(name) or self._ignoring_case(name)
        if len(found) > 1:
            found = self._closest(found, wanted)
        inside = [number for number in found if f"/{self.paths[number]}".startswith(f"/{folder}/")] if folder else []
        return inside or found

    def _ignoring_case(self, name: str) -> list[int]:
        if self._by_lower_name is None:
            self._by_lower_name = _by_name([path.lower() for path in self.paths])
        return self._by_lower_name.get(name.lower(), [])

    def _closest(self, numbers: list[int], wanted: str) -> list[int]:
        """Return the images whose folders agree best with those of the cell, from the last folder upwards."""
        parts = wanted.split("/")[-2::-1]

        def agreement(number: int) -> int:
            above = self.paths[number].split("/")[-2::-1]
            return next((i for i, (a, b) in enumerate(zip(parts, above)) if a != b), min(len(parts), len(above)))

        best = max(map(agreement, numbers))
        return [number for number in numbers if agreement(number) == best]


def _by_name(paths: Sequence[str]) -> dict[str, list[int]]:
    """Return the numbers of the paths by file name, with and without its ending."""
    found: dict[str, list[int]] = defaultdict(list)
    for number, path in enumerate(paths):
        name = path.rpartition("/")[2]
        found[name].append(number)
        stem = name.rpartition(".")[0]
        if stem != name:
            found[stem].append(number)
    return found


def table_labels(
    files: Files,
    name: str,
    val_fraction: float,
    tables: Sequence[Path],
    image_column: str | None,
    label_column: str | None,
) -> Source:
    """Return the images that the tables name as a source.

    Args:
        files: the images, and perhaps the tables.
        name: of the data set.
        val_fraction: fraction of the training images to hold out if there is no validation split.
        tables: on the disk, or inside `files`.
        image_column, label_column: names of the columns; None: guessed.

    Raises:
        UserError: a table is missing or damaged, or it is not clear what its columns or cells mean.
    """
    rows, paths = image_paths(files)
    images = ImageNames([files.names[row] for row in rows.tolist()])
    label_of: dict[int, str] = {}
    split_of: dict[int, int | None] = {}
    notes: list[str] = []
    for path in tables:
        table, place = _open(files, path)
        found = labelled_rows(table, lambda cell: bool(images.find(cell)), image_column, label_column)
        notes.append(found.understood)
        of_table = split_of_name(path.stem) if len(tables) > 1 else None
        notes += _take(found, table.name, images, place, of_table, label_of, split_of)
    numbers = sorted(label_of)
    if left_out := len(paths) - len(numbers):
        notes.append(f"left out {left_out:,} images that no table names")
    labels, classes = _numbered([label_of[number] for number in numbers], files.place)
    names = [paths[number] for number in numbers]
    own = np.array(_splits([split_of[number] for number in numbers], names), np.uint8)
    splits, held_out = with_validation(own, names, labels, val_fraction)
    kept = rows[numbers]
    listing = Listing(
        splits, labels, files.sizes[kept], Names(names), classes, [*notes, *held_out, *ignored_notes(files)]
    )
    return FileSource("images with a table of labels", name, files, kept, listing)


def offered_table(files: Files) -> str | None:
    """Return the name of a table among the files that names their images, for a message; None if there is none."""
    try:
        images = ImageNames([files.names[row] for row in image_paths(files)[0].tolist()])
    except UserError:
        return None
    for row, name in enumerate(files.names):
        if name.lower().endswith(TABLE_ENDINGS) and not hidden(name) and files.sizes[row] <= _LARGEST_OFFERED:
            try:
                table = read_table(name, files.read(row))
            except (UserError, OSError, ValueError):
                continue
            table = Table(table.name, table.columns, table.rows[:_LOOKED_AT])
            if len(table.columns) > 1 and names_images(table, lambda cell: bool(images.find(cell))):
                return name
    return None


def _open(files: Files, path: Path) -> tuple[Table, str]:
    """Return a table and the folder of `files` that holds it, which the paths in it may be relative to."""
    if path.is_file():
        try:
            return read_table(str(path), path.read_bytes()), ""
        except OSError as error:
            raise UserError(f"the table {path} cannot be read: {error.strerror}") from None
    wanted = path.as_posix()
    for row, name in enumerate(files.names):
        if f"/{name}".endswith(f"/{wanted}"):
            return read_table(name, files.read(row)), str(PurePosixPath(name).parent).removeprefix(".")
    raise UserError(f"there is no table {path}, neither as a file nor inside of {files.place}")


def _take(
    found: LabelledRows,
    table: str,
    images: ImageNames,
    folder: str,
    of_table: int | None,
    label_of: dict[int, str],
    split_of: dict[int, int | None],
) -> list[str]:
    """Add the labels and splits of a table's rows, by the number of their image, and return notes for the user."""
    missing, unlabelled = 0, 0
    for cell, label, split in zip(found.images, found.labels, found.splits):
        numbers = images.find(cell, folder)
        if len(numbers) > 1 and of_table is None:
            numbers = _in_split(numbers, images.paths, split_of_name(PurePosixPath(table).stem)) or numbers
        if len(numbers) > 1:
            both = " and ".join(printable(images.paths[number]) for number in numbers[:2])
            raise UserError(f"{cell!r} in {table} may be {both}: write the folder of each image into the table too")
        if not numbers:
            missing += 1
        elif not label:
            unlabelled += 1
        elif label_of.setdefault(numbers[0], label) != label:
            raise UserError(
                f"{cell!r} has the labels {label_of[numbers[0]]!r} and {label!r} in {table}: give each image one class"
            )
        else:
            split_of[numbers[0]] = of_table if split is None else split
    notes = []
    if missing:
        notes.append(f"{missing:,} rows of {table} name images that are not there")
    if unlabelled:
        notes.append(f"left out {unlabelled:,} images without a label in {table}")
    return notes


def _in_split(numbers: list[int], paths: Sequence[str], split: int | None) -> list[int]:
    """Return the images that lie in a folder of a split: ``train.csv`` means the images in ``train/``."""
    if split is None:
        return []
    return [number for number in numbers if any(split_of_name(part) == split for part in paths[number].split("/")[:-1])]


def _splits(known: list[int | None], names: list[str]) -> list[int]:
    """Return the split of each image: of its row or table, or else of its top folder if all of these are splits."""
    if any(split is not None for split in known):
        return [TRAIN if split is None else split for split in known]
    of_folder = [split_of_name(name.partition("/")[0]) if "/" in name else None for name in names]
    if None in of_folder or len(set(of_folder)) < 2:
        return [TRAIN] * len(names)
    return [split for split in of_folder if split is not None]


def _numbered(labels: list[str], place: str) -> tuple[NDArray[np.int32], list[str]]:
    found = set(labels)
    if len(found) > max(2, len(labels) // 2):
        raise UserError(
            f"the labels of {place} are different for nearly every image, e.g. {min(found)!r}: "
            f"name another column with --label-column"
        )
    classes = sorted(found, key=int) if all(label.isdecimal() for label in found) else sorted(found)
    require_classes(classes, place)
    number = {label: i for i, label in enumerate(classes)}
    return np.array([number[label] for label in labels], np.int32), classes
