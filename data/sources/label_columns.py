"""Finds the columns of a table that hold the images, their labels and their splits, unless the user names them."""

from collections.abc import Callable
from dataclasses import dataclass

from data.image_formats import IMAGE_ENDINGS
from data.sources.splits import split_of_name
from data.sources.tables import Table
from recipes.errors import UserError

LABEL_NAMES = (
    *("label", "labels", "class", "class_name", "classname", "category", "category_name", "target", "cls", "y"),
    *("label_name", "class_id", "classid", "label_id", "breed", "species", "diagnosis", "dx", "variety", "type"),
)
_SPLIT_NAMES = ("split", "set", "subset", "partition", "data_set", "dataset", "usage", "phase")
_RESOLVED = 0.5  # smallest share of a column's cells that must name a file for it to be the column of images


@dataclass(frozen=True)
class LabelledRows:
    """The rows of a table as columns: image cell, label and split, the latter an index into `SPLITS` or None.

    `understood` is a sentence for the user that says which columns are used.
    """

    images: list[str]
    labels: list[str]
    splits: list[int | None]
    understood: str


def labelled_rows(
    table: Table, resolves: Callable[[str], bool], image_column: str | None, label_column: str | None
) -> LabelledRows:
    """Return the images, labels and splits of a table.

    Args:
        table: its columns and rows.
        resolves: whether a cell names an image of the source.
        image_column, label_column: as the user named them; None: guessed.

    Raises:
        UserError: a column is missing, or it is not clear which one it is.
    """
    if image_column is None and any(_names_image(name, resolves) for name in table.columns):
        columns = [f"column {number}" for number in range(1, len(table.columns) + 1)]
        table = Table(table.name, columns, [table.columns, *table.rows])  # it has no header
    image = image_column or _image_column(table, resolves)
    images = table.column(image)
    split = next((name for name in table.columns if _plain(name) in _SPLIT_NAMES and _are_splits(table, name)), None)
    splits: list[int | None] = [split_of_name(cell) for cell in table.column(split)] if split else [None] * len(images)
    summary = f"images in the column {image!r}" + (f", splits in {split!r}" if split else "")
    others = [name for name in table.columns if name not in (image, split) and name]
    if label_column is None and (one_hot := _one_hot(table, others)):
        return LabelledRows(images, one_hot, splits, f"{table.name}: {summary}, one column of 0 and 1 per class")
    label = label_column or _label_column(table, others)
    return LabelledRows(
        images, whole_numbers(table.column(label)), splits, f"{table.name}: {summary}, labels in {label!r}"
    )


def names_images(table: Table, resolves: Callable[[str], bool]) -> bool:
    """Return whether the table has a column that names images of the source."""
    return bool(table.rows) and max(_shares(table, resolves), default=0.0) >= _RESOLVED


def whole_numbers(labels: list[str]) -> list[str]:
    """Return labels without the ".0" that spreadsheets and data frames add to whole numbers beside an empty cell."""
    if all(not label or label.removesuffix(".0").isdecimal() for label in labels):
        return [label.removesuffix(".0") for label in labels]
    return labels


def _shares(table: Table, resolves: Callable[[str], bool]) -> list[float]:
    """Return for each column the share of its cells that name an image."""
    return [sum(map(resolves, table.column(name))) / len(table.rows) for name in table.columns]


def _names_image(cell: str, resolves: Callable[[str], bool]) -> bool:
    return cell.lower().endswith(IMAGE_ENDINGS) and resolves(cell)


def _image_column(table: Table, resolves: Callable[[str], bool]) -> str:
    shares = _shares(table, resolves)
    # Labels such as 0 and 1 may be the names of images too, but of few different ones.
    different = [sum(map(resolves, set(table.column(name)))) for name in table.columns]
    best = max(range(len(shares)), key=different.__getitem__)
    if shares[best] < _RESOLVED:
        raise UserError(
            f"no column of {table.name} names the images of the source (columns: {', '.join(table.columns)}; e.g. "
            f"{', '.join(table.rows[0])}): name it with --image-column, or give the folder that holds the images"
        )
    return table.columns[best]


def _label_column(table: Table, others: list[str]) -> str:
    known = [name for name in others if _plain(name) in LABEL_NAMES]
    # A name beside its number, e.g. "category" and "category_id", is the same label twice.
    known = [name for name in known if not name.lower().endswith("id")] or known
    if len(known) == 1:
        return known[0]
    if len(others) == 1:
        return others[0]
    listed = ", ".join(table.columns)
    raise UserError(
        f"it is not clear which column of {table.name} holds the labels: name one with --label-column ({listed})"
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


def _are_splits(table: Table, name: str) -> bool:
    return all(split_of_name(cell) is not None for cell in table.column(name))
