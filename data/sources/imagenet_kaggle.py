"""ImageNet-1K in Kaggle's layout: ``ILSVRC/Data/CLS-LOC/train/<wnid>``, a flat ``val`` folder, labels in a table.

The source is the folder or zip that holds ``ILSVRC`` and ``LOC_val_solution.csv``.
"""

import csv
import re

import numpy as np

from data.image_formats import IMAGE_ENDINGS
from data.sources.base import Listing, Names, Source, require_classes
from data.sources.class_folders import FileSource
from data.sources.files import Files
from data.sources.splits import TRAIN, VAL
from recipes.errors import UserError

SOLUTION = "LOC_val_solution.csv"
_TRAIN = re.compile(r"(?:.*/)?CLS-LOC/train/(n\d{8})/([^/]+)")
_VAL = re.compile(r"(?:.*/)?CLS-LOC/val/(([^/]+)\.[^/.]+)")


def imagenet_kaggle(files: Files, name: str) -> Source | None:
    """Return the source, or None if the files have another layout.

    Raises:
        UserError: the table of validation labels is missing or does not match the images.
    """
    rows, names, folders = [], [], []
    val_rows: list[int] = []
    val_names: list[re.Match[str]] = []
    solution = None
    for row, path in enumerate(files.names):
        if not path.lower().endswith(IMAGE_ENDINGS):
            solution = row if path.rpartition("/")[2] == SOLUTION else solution
        elif found := _TRAIN.fullmatch(path):
            rows.append(row)
            names.append(f"{found[1]}/{found[2]}")
            folders.append(found[1])
        elif found := _VAL.fullmatch(path):
            val_rows.append(row)
            val_names.append(found)
    if not rows or not val_rows:
        return None
    if solution is None:
        raise UserError(
            f"{files.place} has validation images but not {SOLUTION}, their labels: "
            f"give the folder that holds both it and ILSVRC"
        )
    classes = sorted(set(folders))
    require_classes(classes, files.place)
    number = {wnid: i for i, wnid in enumerate(classes)}
    wnid_of = _solution(files.read(solution))
    labels = [number[folder] for folder in folders]
    for found in val_names:
        wnid = wnid_of.get(found[2])
        if wnid is None or wnid not in number:
            raise UserError(f"{SOLUTION} in {files.place} gives no class for {found[1]}: download it again")
        names.append(f"val/{found[1]}")
        labels.append(number[wnid])
    splits = np.repeat(np.array([TRAIN, VAL], np.uint8), [len(rows), len(val_rows)])
    all_rows = np.array(rows + val_rows, np.int64)
    listing = Listing(splits, np.array(labels, np.int32), files.sizes[all_rows], Names(names), classes)
    return FileSource("Kaggle ImageNet-1K", name, files, all_rows, listing)


def _solution(table: bytes) -> dict[str, str]:
    """Return the WordNet id of each validation image by its name. In the same column, boxes follow the id."""
    lines = csv.DictReader(table.decode("utf-8-sig").splitlines())
    return {line["ImageId"]: line["PredictionString"].split()[0] for line in lines if line.get("PredictionString")}
