"""Kaggle's cats-vs-dogs as downloaded: labels from file names, ``train/cat.0.jpg`` to ``train/dog.12499.jpg``.

Kaggle distributes ``dogs-vs-cats.zip`` with ``train.zip`` and the unlabelled ``test1.zip`` inside. The unpacked folders
of the outer or of the inner zip are recognised too.
"""

import re
from pathlib import Path

import numpy as np

from data.printable_text import printable
from data.sources.base import Listing, Names, Source
from data.sources.class_folders import FileSource
from data.sources.files import Files, FolderFiles, hidden
from data.sources.splits import hold_out
from data.sources.zip_files import ZipFiles

CLASSES = ["cat", "dog"]
_LABELLED = re.compile(r"(?:(.*)/)?(cat|dog)\.\d+\.jpg", re.IGNORECASE)
_UNLABELLED = re.compile(r"(?:.*/)?(test1?/)?\d+\.jpg", re.IGNORECASE)


def kaggle_download(files: Files, name: str, val_fraction: float) -> Source | None:
    """Return the source of the ``train.zip`` inside Kaggle's download, or None if this is not that download."""
    archives = [path for path in files.names if path.lower().endswith(".zip") and not hidden(path)]
    inner = next((path for path in archives if path.rpartition("/")[2] == "train.zip"), None)
    if inner is None or any(path.lower().endswith(".jpg") and not hidden(path) for path in files.names):
        return None
    if isinstance(files, FolderFiles):
        found = cats_dogs(ZipFiles(files.root / inner), name, val_fraction)
    elif isinstance(files, ZipFiles):
        found = cats_dogs(ZipFiles(Path(files.place), inner), name, val_fraction)
    else:
        return None
    if found is not None and len(archives) > 1:
        others = ", ".join(printable(path) for path in archives if path != inner)
        found.notes.append(f"left out {others}: the labels are in the names of the images of {printable(inner)}")
    return found


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
