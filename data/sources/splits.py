"""Recognises the split that a folder or file is for by its name, and chooses the images of a validation split."""

import re
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from data.printable_text import printable
from recipes.randomness import random_key

SPLITS = ("train", "val", "test")
TRAIN, VAL, TEST = range(3)

DEFAULT_FRACTION = 0.1  # held out for validation, unless the user says how much
_STEMS = {
    **dict.fromkeys(("train", "training", "trn", "trainval"), TRAIN),
    **dict.fromkeys(("val", "valid", "validation", "dev", "eval", "evaluation"), VAL),
    **dict.fromkeys(("test", "testing", "tst", "holdout"), TEST),
}
_ADDED = ("", "set", "data", "dataset", "images", "imgs", "split")  # as in "testset" or "traindata"
_WORDS = {stem + added: split for stem, split in _STEMS.items() for added in _ADDED}


def split_of_name(name: str) -> int | None:
    """Return the split in a name such as ``Training``, ``seg_test`` or ``valImages``, as an index into `SPLITS`.

    Returns None if the name contains no split, or more than one.
    """
    spaced = re.sub(r"([a-z])([A-Z])", r"\1 \2", name)
    found = {_WORDS[word] for word in re.findall("[a-z]+", spaced.lower()) if word in _WORDS}
    return found.pop() if len(found) == 1 else None


def hold_out(names: Sequence[str], labels: NDArray[np.int32], fraction: float) -> NDArray[np.uint8]:
    """Return a split column that puts `fraction` of each class, at least one image, into validation.

    A class always keeps at least one training image, unless the fraction is 1, which means all. Which images are held
    out depends on their names and classes alone, not on the order of the listing or the machine.
    """
    if fraction == 1:
        return np.full(len(labels), VAL, np.uint8)
    hashes = np.fromiter((random_key(0, f"held out: {printable(name)}") for name in names), np.int64, len(names))
    order = np.lexsort((hashes, labels))
    counts = np.bincount(labels)
    held = np.minimum(np.maximum(np.rint(counts * fraction), fraction > 0), np.maximum(counts - 1, 0))
    rank_in_class = np.arange(len(labels)) - np.repeat(np.cumsum(counts) - counts, counts)
    splits = np.full(len(labels), TRAIN, np.uint8)
    splits[order[rank_in_class < held[labels[order]]]] = VAL
    return splits


def with_validation(
    splits: NDArray[np.uint8], names: Sequence[str], labels: NDArray[np.int32], fraction: float
) -> tuple[NDArray[np.uint8], list[str]]:
    """Return the split column with a validation split, and notes for the user.

    If there is none, it is made of `fraction` of the training images of each class. Test images are never used for it:
    the best weights of a run are chosen by validation accuracy, so their test accuracy would be too high.
    """
    if VAL in splits:
        ignored = fraction != DEFAULT_FRACTION and TRAIN in splits
        note = f"the source has a validation split of its own, so --val-fraction {fraction:g} changes nothing"
        return splits, [note] if ignored else []
    if fraction == 0:
        return splits, []
    rows = np.flatnonzero(splits == TRAIN)
    found = splits.copy()
    found[rows] = hold_out([names[row] for row in rows.tolist()], labels[rows], fraction)
    if TEST not in splits or not len(rows):
        return found, []
    held_out = np.count_nonzero(found == VAL)
    reason = "--val-fraction 1 takes them all" if fraction == 1 else "the source has only a test split"
    return found, [f"{held_out:,} training images are the validation split, because {reason}"]
