"""Labels from tables: images in any folders, and tables (`data.sources.tables`) that name the class of each.

These are the layouts of Kaggle's competitions (``train.csv`` beside ``train/``) and of image folders with a
``metadata.csv``.
"""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from data.printable_text import composed, printable
from data.sources.base import Listing, Names, Source
from data.sources.class_folders import FileSource, image_paths
from data.sources.class_labels import OTHER_COLUMN, numbered
from data.sources.files import Files
from data.sources.ignored_files import ignored_notes
from data.sources.image_names import ImageNames, plain_path
from data.sources.label_columns import LabelledRows, labelled_rows
from data.sources.splits import SPLITS, TRAIN, split_of_name, with_validation
from data.sources.tables import Table, read_table
from recipes.errors import UserError


class _Labels:
    """The labels and splits of images, by their number, as tables give them.

    Attributes:
        labels: the label of each image that has one.
        splits: the split of each of them, an index into `SPLITS`, or None if no table says it.
    """

    def __init__(self, images: ImageNames):
        self.labels: dict[int, str] = {}
        self.splits: dict[int, int | None] = {}
        self._images, self._cells = images, dict[int, str]()

    def add(self, number: int, cell: str, label: str, split: int | None, table: str) -> None:
        """Add the label of an image.

        Raises:
            UserError: another row gives it another label or split, or means another image.
        """
        if number in self.labels:
            self._require_equal(number, cell, label, split, table)
        self.labels[number], self.splits[number], self._cells[number] = label, split, cell

    def _require_equal(self, number: int, cell: str, label: str, split: int | None, table: str) -> None:
        before, known, earlier = self._cells[number], self.labels[number], self.splits[number]
        one, other = (f"/{composed(plain_path(name))}".lower() for name in (cell, before))
        if "/" in one[1:] and "/" in other[1:] and not (one.endswith(other) or other.endswith(one)):
            raise UserError(
                f"{before!r} and {cell!r} in {table} both seem to be {printable(self._images.paths[number])}: give the "
                f"folder that holds both of them, or remove the rows of missing images"
            )
        if known != label:
            raise UserError(f"{cell!r} has the labels {known!r} and {label!r} in {table}: give each image one class")
        if earlier != split:
            names = [TRAIN if found is None else found for found in (earlier, split)]
            raise UserError(
                f"{cell!r} is in the {SPLITS[names[0]]} and in the {SPLITS[names[1]]} split, according to {table}: "
                f"give each image one split"
            )


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
    taken = _Labels(images)
    notes: list[str] = []
    for path in tables:
        table, place = _open(files, path)
        found = labelled_rows(table, images.find, image_column, label_column)
        notes += found.notes
        of_table = split_of_name(path.stem) if len(tables) > 1 else None
        notes += _take(found, table.name, images, place, of_table, taken)
    numbers = sorted(taken.labels)
    if left_out := len(paths) - len(numbers):
        notes.append(f"left out {left_out:,} images to which no table gives a class")
    labels, classes = numbered([taken.labels[number] for number in numbers], files.place, OTHER_COLUMN)
    names = [paths[number] for number in numbers]
    own = np.array(_splits([taken.splits[number] for number in numbers], names), np.uint8)
    splits, held_out = with_validation(own, names, labels, val_fraction)
    kept = rows[numbers]
    listing = Listing(
        splits, labels, files.sizes[kept], Names(names), classes, [*notes, *held_out, *ignored_notes(files)]
    )
    return FileSource("images with a table of labels", name, files, kept, listing)


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
    found: LabelledRows, table: str, images: ImageNames, folder: str, of_table: int | None, taken: _Labels
) -> list[str]:
    """Add the labels and splits of a table's rows, and return notes for the user."""
    missing, unlabelled = 0, 0
    elsewhere: list[tuple[str, int]] = []
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
        else:
            taken.add(numbers[0], cell, label, of_table if split is None else split, table)
            if images.in_other_folder(cell, numbers[0]):
                elsewhere.append((cell, numbers[0]))
    notes = []
    if missing:
        notes.append(f"{missing:,} rows of {table} name images that are not there")
    if unlabelled:
        notes.append(f"{unlabelled:,} rows of {table} have no label")
    if elsewhere:
        cell, number = elsewhere[0]
        notes.append(
            f"{len(elsewhere):,} rows of {table} name an image in another folder, e.g. {cell!r}, which is taken to be "
            f"{printable(images.paths[number])}"
        )
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
