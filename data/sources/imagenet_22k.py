"""ImageNet-22K as distributed: a folder with one tar per class, ``n01440764.tar`` and 21,840 more.

Nothing is unpacked.
"""

import re
from pathlib import Path

import numpy as np

from data.sources.base import Listing, Source, require_classes
from data.sources.class_folders import FileSource
from data.sources.class_tars import ClassTar, TarImages
from data.sources.splits import hold_out

_CLASS_TAR = re.compile(r"(n\d{8})\.tar")


def class_tars(folder: Path) -> list[Path]:
    """Return the tars of a folder that are named after a WordNet id, sorted."""
    return sorted(path for path in folder.iterdir() if _CLASS_TAR.fullmatch(path.name))


def imagenet_22k(folder: Path, val_fraction: float, workers: int | None, progress: bool) -> Source:
    """Return the source for a folder of class tars. The classes are the sorted WordNet ids.

    Raises:
        UserError: a tar is damaged, or there is only one.
    """
    tars = [ClassTar(path.stem, path, 0, path.stat().st_size) for path in class_tars(folder)]
    classes = [tar.name for tar in tars]
    require_classes(classes, str(folder))
    images = TarImages(tars, workers, progress)
    splits = hold_out(images.names, images.numbers, val_fraction)
    listing = Listing(splits, images.numbers, images.sizes, images.names, classes)
    return FileSource("class tars", folder.resolve().name, images, np.arange(len(splits)), listing)
