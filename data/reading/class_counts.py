"""Warnings for the user about classes that have few images or none."""

import re
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from data.printable_text import composed, first_few, printable

_FEW = 5  # training images; with fewer, a class is hardly learned, and a validation split holds one image or none
_NAMED = 5  # classes in a sentence


def class_notes(classes: Sequence[str], per_class: Mapping[str, Sequence[int]]) -> list[str]:
    """Return sentences about classes that lack images, or have few, in a split of a data set.

    Args:
        classes: names of the classes.
        per_class: number of images of each class, by the name of the split.
    """
    counts = {name: np.array(images) for name, images in per_class.items()}
    notes = []
    total = sum(counts.values(), np.zeros(len(classes), np.int64))
    train = counts.get("train")
    empty = total == 0
    if empty.any():
        notes.append(f"{_named(classes, empty)} without any image")
        if empty[0] and classes[0] == "0" and not empty[1:].any():
            notes.append("no image has the label 0: if the labels count from 1, renumber them with --class-map")
    if train is not None:
        if (absent := (train == 0) & ~empty).any():
            notes.append(f"{_named(classes, absent)} without training images, which the model cannot learn")
        if (few := (train > 0) & (train < _FEW)).any():
            notes.append(f"{_named(classes, few)} with fewer than {_FEW} training images")
        for name, images in counts.items():
            if name != "train" and (absent := (images == 0) & (train > 0)).any():
                notes.append(f"{_named(classes, absent)} without images in the {name} split")
    return notes


def similar_names(classes: Sequence[str]) -> list[str]:
    """Return sentences about classes that may be one, such as ``Cat`` and ``cat``, or several, such as ``cat|dog``."""
    alike: dict[str, list[str]] = defaultdict(list)
    for name in classes:
        alike[re.sub(r"[\s_-]+", " ", composed(name).strip()).casefold()].append(name)
    notes = []
    if pairs := [_alike(found) for found in alike.values() if len(found) > 1]:
        notes.append(
            f"classes whose names differ only in case, spaces, hyphens or Unicode form: {first_few(pairs, _NAMED)}; "
            f"--class-map joins them if they are one"
        )
    known = set(classes)
    if joined := [name for name in classes if len(parts := re.split("[|;]", name)) > 1 and known & set(parts)]:
        listed = first_few([repr(printable(name)) for name in joined], _NAMED)
        notes.append(f"classes that combine several labels, each combination one class of its own: {listed}")
    return notes


def _alike(names: Sequence[str]) -> str:
    """Return names for a sentence, with what differs written out if they look the same."""
    look_same = len(set(map(composed, names))) < len(names)
    return " and ".join(ascii(name) if look_same else repr(printable(name)) for name in names)


def _named(classes: Sequence[str], chosen: NDArray[np.bool_]) -> str:
    rows = np.flatnonzero(chosen).tolist()
    listed = [printable(classes[row]) for row in rows]
    return f"{len(rows):,} {'class' if len(rows) == 1 else 'classes'} ({first_few(listed, _NAMED)})"
