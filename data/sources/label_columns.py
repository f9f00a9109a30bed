"""Finds the columns of a table that hold the images, their labels and their splits, unless the user names them."""

from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass

from data.image_formats import IMAGE_ENDINGS
from data.printable_text import first_few, one_line
from data.sources.class_labels import OTHER_COLUMN, cleaned_labels, merged_forms
from data.sources.splits import TRAIN, split_of_name
from data.sources.tables import Table
from recipes.errors import UserError

LABEL_NAMES = (
    *("label", "labels", "class", "class_name", "classname", "category", "category_name", "target", "cls", "y"),
    *("label_name", "class_id", "classid", "label_id", "breed", "species", "diagnosis", "dx", "variety", "type"),
)
SPLIT_NAMES = ("split", "set", "subset", "partition", "data_set", "dataset", "usage", "phase")
_RESOLVED = 0.5  # smallest share of a column's cells that must name a file for it to be the column of images
_LISTED = 6  # columns or cells in a sentence


Find = Callable[[str], Sequence[int]]


@dataclass(frozen=True)
class LabelledRows:
    """The rows of a table as columns: image cell, label and split, the latter an index into `SPLITS` or None.

    `notes` are sentences for the user that say which columns are used, and which rows are left out.
    """

    images: list[str]
    labels: list[str]
    splits: list[int | None]
    notes: list[str]


def labelled_rows(table: Table, find: Find, image_column: str | None, label_column: str | None) -> LabelledRows:
    """Return the images, labels and splits of a table.

    Args:
        table: its columns and rows.
        find: returns the numbers of the images of the source that a cell may mean.
        image_column, label_column: as the user named them; None: guessed.

    Raises:
        UserError: a column is missing, it is not clear which one it is, or it holds no classes.
    """
    if image_column is None and any(_names_image(name, find) for name in table.columns):
        columns = [f"column {number}" for number in range(1, len(table.columns) + 1)]
        table = Table(table.name, columns, [table.columns, *table.rows])  # it has no header
    image = image_column or _image_column(table, find)
    table.column(image)
    split = next(
        (name for name in table.columns if _plain(name) in SPLIT_NAMES and holds_splits(set(table.column(name)))), None
    )
    table, notes = _rows_of_splits(table, split) if split else (table, [])
    others = [name for name in table.columns if name not in (image, split) and name]
    summary = f"{table.name}: images in the column {image!r}" + (f", splits in {split!r}" if split else "")
    if label_column is None and (one_hot := _one_hot(table, others)):
        labels, used = one_hot, others
        summary += ", one column of 0 and 1 per class"
    else:
        label = label_column or _label_column(table, others)
        labels, used = (
            cleaned_labels(table.column(label), f"the column {label!r} of {table.name}", OTHER_COLUMN),
            [label],
        )
        notes += merged_forms(table.column(label))
        summary += f", labels in {label!r}"
    if unused := [repr(name) for name in others if name not in used]:
        summary += f"; not used: {first_few(unused, _LISTED)}"
    splits: list[int | None] = [None] * len(labels)
    if split:
        splits = [split_of_name(cell) for cell in table.column(split)]
    return LabelledRows(table.column(image), labels, splits, [summary, *notes])


def names_images(table: Table, find: Find) -> bool:
    """Return whether the table has a column that names images of the source."""
    return bool(table.rows) and any(_share(table, name, find) >= _RESOLVED for name in table.columns)


def _share(table: Table, name: str, find: Find) -> float:
    """Return the share of a column's cells that name an image."""
    return sum(bool(find(cell)) for cell in table.column(name)) / len(table.rows)


def _names_image(cell: str, find: Find) -> bool:
    return _is_path(cell) and bool(find(cell))


def _image_column(table: Table, find: Find) -> str:
    """Return the column that names the images.

    Numbers of rows, ages and classes may be names of images too, such as ``7`` of ``7.jpg``. So names with an ending
    come first, then the column of the most different images; the numbers that pandas gives to rows come last.

    Raises:
        UserError: there is none, or several columns name other images, so that the labels could be of either.
    """
    known = [name for name in dict.fromkeys(table.columns) if _share(table, name, find) >= _RESOLVED]
    if not known:
        raise UserError(
            one_line(
                f"no column of {table.name} names the images of the source (columns: {', '.join(table.columns)}; e.g. "
                f"{', '.join(table.rows[0])}): name it with --image-column, or give the folder that holds the images"
            )
        )
    known = [name for name in known if _is_path(table.column(name)[0])] or known
    known = [name for name in known if name and not _plain(name).startswith("unnamed:")] or known
    # A name that several images have counts less, so that a column with their folders is preferred.
    different = {
        name: sum(1 / max(1, len(find(cell))) for cell in set(table.column(name)) if find(cell)) for name in known
    }
    best = max(known, key=different.__getitem__)
    images = [find(cell) for cell in table.column(best)]
    for name in known:
        is_rival = 2 * different[name] >= different[best] and _plain(name) not in LABEL_NAMES
        if is_rival and any(a and b and not set(a) & set(b) for a, b in zip(images, map(find, table.column(name)))):
            raise UserError(
                f"the columns {best!r} and {name!r} of {table.name} both name images, but not the same ones: "
                f"name the right one with --image-column"
            )
    return best


def _is_path(cell: str) -> bool:
    return cell.lower().endswith(IMAGE_ENDINGS)


def _label_column(table: Table, others: list[str]) -> str:
    known = [name for name in others if _plain(name) in LABEL_NAMES]
    # A name beside its number, e.g. "category" and "category_id", is the same label twice.
    known = [name for name in known if not name.lower().endswith("id")] or known
    if len(known) == 1:
        return known[0]
    if len(others) == 1 and _plain(others[0]) not in SPLIT_NAMES:
        return others[0]
    listed = ", ".join(table.columns)
    raise UserError(
        one_line(
            f"it is not clear which column of {table.name} holds the labels: name one with --label-column ({listed})"
        )
    )


def _one_hot(table: Table, others: list[str]) -> list[str] | None:
    """Return the label of each row if the other columns are one-hot (one column of 0 and 1 per class), else None."""
    if len(others) < 2:
        return None
    numbers = [table.columns.index(name) for name in others]
    labels = []
    for row in table.rows:
        cells = [row[number].removesuffix(".0") for number in numbers]
        if sorted(cells) != ["0"] * (len(cells) - 1) + ["1"]:
            return None
        labels.append(others[cells.index("1")])
    return labels


def _plain(name: str) -> str:
    return name.lower().replace(" ", "_")


def holds_splits(cells: Set[str]) -> bool:
    """Return whether all cells of a column are splits, or at least the training and another split are among them."""
    found = {split_of_name(cell) for cell in cells}
    return None not in found or (TRAIN in found and len(found) >= 3)


def _rows_of_splits(table: Table, split: str) -> tuple[Table, list[str]]:
    """Return a table without the rows whose split is not known, and notes for the user."""
    cells = table.column(split)
    rows = [row for row, cell in zip(table.rows, cells) if split_of_name(cell) is not None]
    if len(rows) == len(cells):
        return table, []
    unknown = sorted({repr(cell) for cell in cells if split_of_name(cell) is None})
    note = f"left out {len(cells) - len(rows):,} rows of {table.name} whose {split!r} names no split"
    return Table(table.name, table.columns, rows), [f"{note}: {first_few(unknown, _LISTED)}"]
