"""Labels from folder names: one folder per class, in a folder, a zip or a tar, with or without split folders above.

``<class>/…/image.jpg`` is recognised, and ``train/<class>/…`` beside ``val/<class>/…``. Both may lie below any number
of folders that hold everything.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.sources.base import TRAIN, VAL, Listing, Names, Source, hold_out, require_classes
from data.sources.files import Files, hidden
from recipes.errors import UserError

IMAGE_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
VALIDATION_FOLDERS = ("val", "valid", "validation", "test", "testing")  # the first one that exists is used


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
        raise UserError(f"{files.place} holds no images ({', '.join(IMAGE_ENDINGS[:4])}, …): check the path")
    return np.array(rows, np.int64), _below_common_folders(paths)


def class_folders(files: Files, name: str, val_fraction: float) -> Source:
    """Return a class-per-folder tree as a source.

    Raises:
        UserError: there are no images, or fewer than two class folders.
    """
    rows, paths = image_paths(files)
    if _has_split_folders(paths):
        keep, folders, splits = _split_tree(paths)
    else:
        keep, folders, splits = _tree(paths)
    labels, classes = _numbered(folders)
    require_classes(classes, files.place)
    names = [paths[row] for row in keep]
    column = np.array(splits, np.uint8) if VAL in splits else hold_out(names, labels, val_fraction)
    notes = []
    if left_out := len(paths) - len(keep):
        notes.append(f"left out {left_out:,} images that are in no class folder of the splits used")
    rows = rows[keep]
    listing = Listing(column, labels, files.sizes[rows], Names(names), classes, notes)
    return FileSource("class folders", name, files, rows, listing)


def _has_split_folders(paths: Sequence[str]) -> bool:
    with_class_folders = {path.partition("/")[0].lower() for path in paths if path.count("/") >= 2}
    top = {path.partition("/")[0].lower() for path in paths}
    return "train" in with_class_folders and not top.isdisjoint(VALIDATION_FOLDERS)


def _split_tree(paths: Sequence[str]) -> tuple[list[int], list[str], list[int]]:
    """Return the rows of `paths` below ``train/<class>`` or the validation folder, their class folders and splits."""
    labelled = {path.partition("/")[0].lower() for path in paths if path.count("/") >= 2}
    validation = next((folder for folder in VALIDATION_FOLDERS if folder in labelled), None)
    split_of = {"train": TRAIN, validation: VAL}
    keep, folders, splits = [], [], []
    for row, path in enumerate(paths):
        split, *below = path.split("/")
        if len(below) >= 2 and split.lower() in split_of:
            keep.append(row)
            folders.append(below[0])
            splits.append(split_of[split.lower()])
    return keep, folders, splits


def _tree(paths: Sequence[str]) -> tuple[list[int], list[str], list[int]]:
    keep = [row for row, path in enumerate(paths) if "/" in path]
    return keep, [paths[row].partition("/")[0] for row in keep], []


def _numbered(folders: Sequence[str]) -> tuple[NDArray[np.int32], list[str]]:
    classes = sorted(set(folders))
    number = {folder: i for i, folder in enumerate(classes)}
    return np.array([number[folder] for folder in folders], np.int32), classes


def _below_common_folders(paths: list[str]) -> list[str]:
    first, last = min(paths).split("/"), max(paths).split("/")
    depth = 0
    while depth < min(len(first), len(last)) - 2 and first[depth] == last[depth]:
        depth += 1
    if depth == 0:
        return paths
    return [path.split("/", depth)[depth] for path in paths]
