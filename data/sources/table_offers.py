"""Finds the tables inside of a source that could hold the labels of its images, for a message to the user."""

import shlex

from data.sources.class_folders import image_paths
from data.sources.files import Files, hidden
from data.sources.image_names import ImageNames
from data.sources.label_columns import labelled_rows, names_images
from data.sources.splits import split_of_name
from data.sources.tables import TABLE_ENDINGS, Table, read_table
from recipes.errors import UserError

_LOOKED_AT = 200  # rows that are checked of a table that may only be suggested in a message
_LARGEST_OFFERED = 64 * 2**20  # bytes; a larger table is not read just for that message


def offered_tables(files: Files) -> str | None:
    """Return the options that take labels from tables among the files, e.g. ``--labels train.csv``; None without one.

    Tables of the same columns, one for each split, are offered together: one alone would give other splits.
    """
    try:
        images = ImageNames([files.names[row] for row in image_paths(files)[0].tolist()])
    except UserError:
        return None
    naming = [
        table for row in range(len(files.names)) if (table := _table(files, row)) and names_images(table, images.find)
    ]
    if not naming:
        return None
    first = next((table for table in naming if _is_understood(table, images)), naming[0])
    alike = [table for table in naming if table.columns == first.columns]
    splits = [_split(table.name) for table in alike]
    together = alike if None not in splits and len(set(splits)) == len(splits) else [first]
    return " ".join(f"--labels {shlex.quote(table.name)}" for table in together)


def _table(files: Files, row: int) -> Table | None:
    """Return the first rows of a table; None if the file is none, or an example of predictions to hand in."""
    name = files.names[row]
    if not name.lower().endswith(TABLE_ENDINGS) or hidden(name) or "submission" in name.lower():
        return None
    if files.sizes[row] > _LARGEST_OFFERED:
        return None
    try:
        table = read_table(name, files.read(row))
    except (UserError, OSError, ValueError):
        return None
    return Table(table.name, table.columns, table.rows[:_LOOKED_AT]) if len(table.columns) > 1 else None


def _is_understood(table: Table, images: ImageNames) -> bool:
    """Return whether the columns of images and labels are clear without the user's help."""
    try:
        labelled_rows(table, images.find, None, None)
    except UserError:
        return False
    return True


def _split(path: str) -> int | None:
    """Return the split in the name of a table, or else in that of its folder."""
    return next((split for part in path.split("/")[::-1][:2] if (split := split_of_name(part)) is not None), None)
