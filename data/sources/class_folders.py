"""Labels from folder names: one folder per class, in a folder, a zip or a tar, with or without split folders above."""

from collections.abc import Callable, Collection, Sequence

import numpy as np
from numpy.typing import NDArray

from data.image_formats import IMAGE_ENDINGS
from data.images.inspection import Unreadable, format_and_colour
from data.printable_text import printable
from data.sources.annotations import masks_of_images
from data.sources.base import Listing, Names, Source, require_classes
from data.sources.class_trees import below_common_folders, class_numbers, read_tree
from data.sources.files import Files, hidden
from data.sources.ignored_files import ignored_notes, require_no_lost_class, split_list_notes
from data.sources.splits import SPLITS, TEST, TRAIN, VAL, split_of_name, with_validation
from recipes.errors import UserError


class FileSource(Source):
    """A source whose images are files of a folder or an archive: the rows `rows` of `files`."""

    def __init__(self, kind: str, name: str, files: Files, rows: NDArray[np.int64], listing: Listing):
        self.kind, self.name, self.files, self.rows, self.listing = kind, name, files, rows, listing

    def read(self, i: int) -> bytes:
        return self.files.read(int(self.rows[i]))


def image_paths(files: Files) -> tuple[NDArray[np.int64], list[str]]:
    """Return the rows of `files` that have an image's ending, and their paths below the folders common to all images.

    Raises:
        UserError: there is no image.
    """
    rows, paths = [], []
    for row, path in enumerate(files.names):
        if path.lower().endswith(IMAGE_ENDINGS) and not hidden(path):
            rows.append(row)
            paths.append(path)
    if not rows:
        ignored = "; ".join(ignored_notes(files))
        raise UserError(
            f"{files.place} holds no images ({', '.join(IMAGE_ENDINGS[:4])}, …): {ignored or 'check the path'}"
        )
    return np.array(rows, np.int64), below_common_folders(paths)


def class_folders(
    files: Files,
    name: str,
    val_fraction: float,
    named: Collection[str],
    offered_tables: Callable[[Files], str | None],
) -> Source:
    """Return a class-per-folder tree as a source.

    Args:
        files: the files of the tree.
        name: of the data set.
        val_fraction: fraction of the training images to hold out if there is no validation split.
        named: folders that a class map names.
        offered_tables: returns the options that take the labels from tables among the files, or None.

    Raises:
        UserError: there are no images, fewer than two class folders, or it is not clear which folders are classes.
    """
    rows, paths, left_out = _without_masks(*image_paths(files))
    try:
        tree = read_tree(paths, files.place, named, lambda number: _look(files, int(rows[number])))
        labels, classes, notes = class_numbers([printable(folder) for folder in tree.folders])
        require_classes(classes, files.place)
    except UserError as error:
        offer = offered_tables(files)
        if offer is None:
            raise
        raise UserError(f"{error}; to take the labels from the tables that name the images, add {offer}") from None
    require_no_lost_class(files, tree.folders)
    if not named:
        _require_shared_classes(np.array(tree.splits, np.uint8), labels, classes, files.place)
    names = [paths[row] for row in tree.rows]
    splits, held_out = with_validation(np.array(tree.splits, np.uint8), names, labels, val_fraction)
    kept = rows[tree.rows]
    notes = [*tree.notes, *notes, *left_out, *held_out, *ignored_notes(files)]
    if not any(tree.splits):
        notes += split_list_notes(files)
        notes += _note_of_split([*files.names[int(kept[0])].removesuffix(names[0]).split("/"), name], splits)
    listing = Listing(splits, labels, files.sizes[kept], Names(names), classes, notes)
    return FileSource("class folders", name, files, kept, listing)


def _note_of_split(above: Sequence[str], splits: NDArray[np.uint8]) -> list[str]:
    """Return a sentence if the folders above all classes are named like a split that the images do not become.

    Args:
        above: the folders, and the name of the source.
        splits: of the images.
    """
    found = set(splits.tolist())
    for folder in above:
        split = split_of_name(folder)
        if split in (VAL, TEST) and TRAIN in found:
            used = " and ".join(SPLITS[other] for other in sorted(found))
            return [
                f"{printable(folder)} is named like a {SPLITS[split]} split, but holds all images, which become the "
                f"{used} split: give the folder that holds the other splits too, if there are any"
            ]
    return []


def _look(files: Files, row: int) -> tuple[str, bool] | None:
    """Return the format of an image and whether it has colours, or None if it cannot be read."""
    try:
        return format_and_colour(files.read(row))
    except (Unreadable, OSError):
        return None


def _without_masks(rows: NDArray[np.int64], paths: list[str]) -> tuple[NDArray[np.int64], list[str], list[str]]:
    """Return rows and paths without the masks of other images, and notes for the user."""
    masks = masks_of_images(paths)
    if not masks:
        return rows, paths, []
    left = np.delete(np.arange(len(paths)), masks)
    example = printable(paths[masks[0]])
    note = f"left out {len(masks):,} images that are named as masks of other images, e.g. {example}"
    return rows[left], [paths[row] for row in left.tolist()], [note]


def _require_shared_classes(
    splits: NDArray[np.uint8], labels: NDArray[np.int32], classes: list[str], place: str
) -> None:
    """Check that the validation or test images have at least one class of the training images.

    Raises:
        UserError: they have none, e.g. because the class folders are spelt differently in each split.
    """
    trained = set(labels[splits == TRAIN].tolist())
    for split in {VAL, TEST} & set(splits.tolist()):
        others = set(labels[splits == split].tolist())
        if trained and not trained & others:
            raise UserError(
                f"the {SPLITS[split]} split of {place} has none of the classes of its training split (e.g. "
                f"{printable(classes[min(others)])} and {printable(classes[min(trained)])}): give the class folders "
                f"the same names, or map them with --class-map"
            )
