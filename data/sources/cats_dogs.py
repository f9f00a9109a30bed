"""Kaggle's cats-vs-dogs as downloaded: labels from file names, ``train/cat.0.jpg`` to ``train/dog.12499.jpg``.

Kaggle distributes ``dogs-vs-cats.zip`` with ``train.zip`` and the unlabelled ``test1.zip`` inside. The unpacked folders
of the outer or of the inner zip are recognised too.
"""

import re
from pathlib import Path

import numpy as np

from data.sources.base import Listing, Names, Source
from data.sources.class_folders import FileSource
from data.sources.files import Files, FolderFiles, hidden
from data.sources.splits import hold_out
from data.sources.zip_files import ZipFiles

CLASSES = ["cat", "dog"]
_LABELLED = re.compile(r"(?:(.*)/)?(cat|dog)\.\d+\.jpg", re.IGNORECASE)
_UNLABELLED = re.compile(r"(?:.*/)?(test1?/)?\d+\.jpg", re.IGNORECASE)


def inner_archive(files: Files) -> Files | None:
    """Return the files of the ``train.zip`` inside Kaggle's download, or None if this is not that download."""
    inner = next((name for name in files.names if name.rpartition("/")[2] == "train.zip" and not hidden(name)), None)
    if inner is None or any(name.lower().endswith(".jpg") and not hidden(name) for name in files.names):
        return None
    if isinstance(files, FolderFiles):
        return ZipFiles(files.root / inner)
    return ZipFiles(Path(files.place), inside=inner) if isinstance(files, ZipFiles) else None


def cats_dogs(files: Files, name: str, val_fraction: float) -> Source | None:
    """Return the source, or None if the files are named differently."""
    rows, names, labels, folders = [], [], [], set()
    unlabelled = 0
    for row, path in enumerate(files.names):
        if hidden(path):
            continue
        if found := _LABELLED.fullmatch(path):
            rows.append(row)
            names.append(path.rpartition("/")[2])
            labels.append(CLASSES.index(found[2].lower()))
            folders.add(found[1])
        elif _UNLABELLED.fullmatch(path):
            unlabelled += 1
        elif path.lower().endswith(".jpg"):
            return None
    if len(folders) != 1 or len(set(labels)) != 2:
        return None
    found_rows, numbers = np.array(rows, np.int64), np.array(labels, np.int32)
    splits = hold_out(names, numbers, val_fraction)
    notes = [f"left out {unlabelled:,} images without a label in their names"] if unlabelled else []
    listing = Listing(splits, numbers, files.sizes[found_rows], Names(names), list(CLASSES), notes)
    return FileSource("Kaggle cats-vs-dogs", name, files, found_rows, listing)
