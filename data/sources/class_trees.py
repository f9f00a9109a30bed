"""Interprets a tree of folders: which folders are splits, which are classes, and which trees are ambiguous.

These layouts are recognised, below any number of folders that hold everything::

    <class>/…/image.jpg
    <split>/<class>/…          train, Training, seg_train, val, validation, test, … (`data.sources.splits`)
    <split>/<split>/<class>/…  as some archives unpack, e.g. seg_train/seg_train
    <class>/<split>/…

An ambiguous tree is refused, because training would run without an error on a wrong interpretation.
"""

import re
from collections import Counter, defaultdict
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from data.printable_text import composed, first_few
from data.sources.paired_folders import Look, refuse_annotation_folders, require_unpaired
from data.sources.splits import SPLITS, TRAIN, split_of_name
from recipes.errors import UserError

_PART_WORDS = {"part", "parts", "batch", "chunk", "fold", "folder", "shard", "subset"} | {
    *("images", "image", "imgs", "img", "photos", "pictures")
}
_LISTED = 4  # folders in a sentence
_NUMBERED = re.compile(r"(.*?)[^A-Za-z0-9]*\d+")


@dataclass
class ClassTree:
    """How the images of a tree were interpreted.

    Attributes:
        rows: which of the paths are labelled images.
        folders: the class folder of each of them.
        splits: the split of each of them, an index into `SPLITS`.
        notes: sentences for the user about what was left out or merged.
    """

    rows: list[int] = field(default_factory=list)
    folders: list[str] = field(default_factory=list)
    splits: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def add(self, row: int, folder: str, split: int) -> None:
        self.rows.append(row)
        self.folders.append(folder)
        self.splits.append(split)


def read_tree(paths: Sequence[str], place: str, named: Collection[str], look: Look) -> ClassTree:
    """Return the interpretation of a tree of images.

    Args:
        paths: of the images, relative to the folders common to all, with forward slashes.
        place: name of the tree in messages.
        named: folders that a class map names: these are classes, whatever they look like.
        look: reads the header of an image, by its number.

    Raises:
        UserError: the folders could be splits or classes, or they hold images and their annotations.
    """
    subfolders: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        top, *below = path.split("/")
        if below:
            subfolders[top].update(below[:-1][:1])
    named = {composed(name) for name in named}
    if any(composed(top) in named for top in subfolders):
        return _plain(paths)
    split_of = {top: split_of_name(top) for top in subfolders}
    if _are_splits(split_of, subfolders):
        tree = _split_first(paths, split_of)
    elif _are_splits_in_classes(paths, subfolders):
        _refuse_folders_inside(paths, place)
        tree = _class_first(paths)
    else:
        _refuse_unclear(subfolders, split_of, place)
        _refuse_parts(sorted(subfolders), place)
        tree = _plain(paths)
    if not named & set(map(composed, tree.folders)):
        tree.notes += require_unpaired(
            tree.folders, [paths[row] for row in tree.rows], lambda number: look(tree.rows[number]), place
        )
    return tree


def class_numbers(folders: Sequence[str]) -> tuple[NDArray[np.int32], list[str], list[str]]:
    """Return the class number of each folder, the sorted class names, and notes for the user.

    Folders whose names differ only in their Unicode form are one class. Copying through macOS changes that form.
    """
    forms: dict[str, set[str]] = defaultdict(set)
    for folder in set(folders):
        forms[composed(folder)].add(folder)
    class_of = {folder: name if len(found) > 1 else folder for name, found in forms.items() for folder in found}
    classes = sorted(set(class_of.values()))
    number = {name: i for i, name in enumerate(classes)}
    labels = np.array([number[class_of[folder]] for folder in folders], np.int32)
    merged = sorted(name for name, found in forms.items() if len(found) > 1)
    notes = (
        [f"classes of one name in two Unicode forms were merged into one class: {', '.join(merged)}"] if merged else []
    )
    return labels, classes, notes


def below_common_folders(paths: list[str]) -> list[str]:
    """Return the paths without the leading folders that all of them share; the folder above the files remains."""
    first, last = min(paths).split("/"), max(paths).split("/")
    depth = 0
    while depth < min(len(first), len(last)) - 2 and first[depth] == last[depth]:
        depth += 1
    return [path.split("/", depth)[depth] for path in paths] if depth else paths


def _are_splits(split_of: dict[str, int | None], subfolders: dict[str, set[str]]) -> bool:
    labelled = {split for top, split in split_of.items() if split is not None and subfolders[top]}
    named = {split for split in split_of.values() if split is not None}
    # A second split without class folders, usually an unlabelled test set, still shows that the first is a split.
    return len(labelled) >= 2 or (labelled == {TRAIN} and len(named) >= 2)


def _are_splits_in_classes(paths: Sequence[str], subfolders: dict[str, set[str]]) -> bool:
    second = {name for names in subfolders.values() for name in names}
    found = {split_of_name(name) for name in second}
    return len(found) >= 2 and TRAIN in found and None not in found and all(path.count("/") >= 2 for path in paths)


def _split_first(paths: Sequence[str], split_of: dict[str, int | None]) -> ClassTree:
    tree, left_out = ClassTree(), Counter[str]()
    first = _first_folders(paths, split_of)
    repeated = {top: _repeated_folders(paths, top, first) for top in first}
    for row, path in enumerate(paths):
        top, *below = path.split("/")
        split, below = split_of.get(top), below[repeated.get(top, 0) :]
        # "test/test/1.jpg" has no class folder: the inner folder only repeats the split.
        again = len(below) >= 2 and split_of_name(below[0]) == split and len(first[top]) == 1
        if split is None or len(below) < 2 or again:
            left_out[top if "/" in path else ""] += 1
        else:
            tree.add(row, below[0], split)
    for folder, count in sorted(left_out.items()):
        reason = "is not a split" if split_of.get(folder) is None else "holds them outside of class folders"
        where = f"{folder}, which {reason}" if folder else "the top folder, outside of the splits"
        tree.notes.append(f"left out {count:,} images of {where}")
    for split in sorted({split for split in split_of.values() if split is not None}):
        tops = sorted(top for top, of_top in split_of.items() if of_top == split and top in first)
        if len(tops) > 1:
            tree.notes.append(f"the {SPLITS[split]} split is made of several folders: {', '.join(tops)}")
    return tree


def _first_folders(paths: Sequence[str], split_of: dict[str, int | None]) -> dict[str, set[str]]:
    """Return the folders directly below each split."""
    found: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        top, *below = path.split("/")
        if split_of.get(top) is not None and len(below) >= 2:
            found[top].add(below[0])
    return found


def _repeated_folders(paths: Sequence[str], top: str, first: dict[str, set[str]]) -> int:
    """Return the number of folders below a split that hold all of it, e.g. 1 for ``train/train/<class>``."""
    if any(first[top] <= names and len(names) > 1 for other, names in first.items() if other != top):
        return 0  # another split has this one folder beside others: it is a class
    below = [path.split("/")[1:-1] for path in paths if path.startswith(f"{top}/")]
    depth, shallowest = 0, min(map(len, below))
    while depth < shallowest - 1 and len({folders[depth] for folders in below}) == 1:
        depth += 1
    return depth


def _class_first(paths: Sequence[str]) -> ClassTree:
    tree = ClassTree()
    for row, path in enumerate(paths):
        folder, split, *_ = path.split("/")
        number = split_of_name(split)
        assert number is not None, "_are_splits_in_classes has looked at every path"
        tree.add(row, folder, number)
    return tree


def _plain(paths: Sequence[str]) -> ClassTree:
    tree = ClassTree()
    for row, path in enumerate(paths):
        if "/" in path:
            tree.add(row, path.partition("/")[0], TRAIN)
    if left_out := len(paths) - len(tree.rows):
        tree.notes.append(f"left out {left_out:,} images that are in no class folder")
    inside = sorted({"/".join(path.split("/", 2)[:2]) for path in paths if path.count("/") >= 2})
    if len(inside) > len(set(tree.folders)):
        tree.notes.append(f"the {len(inside):,} folders inside the classes, such as {inside[0]}, are no classes")
    return tree


def _refuse_unclear(subfolders: dict[str, set[str]], split_of: dict[str, int | None], place: str) -> None:
    tops = sorted(subfolders)
    if len(tops) >= 2 and all(split is not None for split in split_of.values()):
        raise UserError(
            f"{place} has the folders {first_few(tops, _LISTED)}, which look like splits but hold no class folders: "
            f"sort the images into one folder per class, or give a table of their labels with --labels"
        )
    refuse_annotation_folders(tops, place)
    looks_like_split = [top for top, split in split_of.items() if split is not None and len(subfolders[top]) >= 2]
    if (shared := _shared_folders(subfolders)) or looks_like_split:
        raise _unclear(tops, shared or sorted(subfolders[looks_like_split[0]]), place)


def _refuse_folders_inside(paths: Sequence[str], place: str) -> None:
    """Raise a `UserError` if the splits of ``<class>/<split>/…`` share folders: these may be the classes.

    That is the layout of cross-validation, ``fold_0/train/<class>/…``.
    """
    inside: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        top, _, *below = path.split("/")
        inside[top].update(below[:-1][:1])
    if shared := _shared_folders(inside):
        raise _unclear(sorted(inside), shared, place)


def _refuse_parts(tops: Sequence[str], place: str) -> None:
    """Raise a `UserError` if the folders are named like parts of one data set, e.g. ``images_part_1``."""
    numbered = [_NUMBERED.fullmatch(top) for top in tops]
    prefixes = {found[1].lower() if found else "" for found in numbered}
    if len(tops) >= 2 and len(prefixes) == 1 and re.split("[^a-z]+", prefixes.pop())[-1] in _PART_WORDS:
        raise UserError(
            f"{place} has the folders {first_few(tops, _LISTED)}, which are numbered like parts of one data set and "
            f"not like classes: sort the images into one folder per class, give a table of their labels with --labels, "
            f"or, if they are classes, name them in a file for --class-map"
        )


def _shared_folders(subfolders: dict[str, set[str]]) -> list[str]:
    """Return the names that several folders have inside, sorted, if there are two of them and they are half of all."""
    tops_of = Counter(name for names in subfolders.values() for name in names)
    shared = sorted(name for name, count in tops_of.items() if count >= 2)
    return shared if len(shared) >= 2 and 2 * len(shared) >= len(tops_of) else []


def _unclear(tops: Sequence[str], inside: Sequence[str], place: str) -> UserError:
    return UserError(
        f"{place} has the folders {first_few(tops, _LISTED)}, with subfolders such as {', '.join(inside[:3])}: it is "
        f"not clear which of them are classes. If the upper ones are splits, name them train, val and test; if they "
        f"are classes, name them in a file for --class-map"
    )
