"""ImageNet-1K as distributed: the training tar of 1,000 tars, the validation tar, and the devkit with its labels.

Nothing is unpacked. The classes are the sorted WordNet ids, which is how torchvision and timm number them.
"""

import io
import re
from pathlib import Path

import numpy as np

from data.sources.archives import Archive
from data.sources.base import Listing, Source, require_classes
from data.sources.class_folders import FileSource
from data.sources.class_tars import ClassTar, TarImages
from data.sources.splits import TRAIN, VAL, hold_out
from data.sources.tar_files import TarFiles, tar_files
from recipes.errors import UserError

TRAIN_TAR = "ILSVRC2012_img_train.tar"
VAL_TAR = "ILSVRC2012_img_val.tar"
DEVKIT = "ILSVRC2012_devkit_t12.tar.gz"


def imagenet(folder: Path, val_fraction: float, workers: int | None, progress: bool) -> Source:
    """Return the source for a folder that holds the three files as downloaded.

    Without the validation tar, `val_fraction` of each class is held out of the training images.

    Raises:
        UserError: a file is damaged, the devkit is missing, or its labels do not match the validation images.
    """
    train = folder / TRAIN_TAR
    inner = sorted(member for member in tar_files(Archive(train), str(train)) if member[0].endswith(".tar"))
    tars = [ClassTar(name.removesuffix(".tar"), train, offset, size) for name, size, offset in inner]
    classes = [tar.name for tar in tars]
    require_classes(classes, str(train))
    validation = folder / VAL_TAR
    notes = []
    if validation.exists():
        wnids = _validation_wnids(folder / DEVKIT)
        tars.append(ClassTar("val", validation, 0, validation.stat().st_size))
    else:
        notes.append(f"{folder} has no {VAL_TAR}: validation images were held out of the training images")
    images = TarImages(tars, workers, progress)
    labels, splits = images.numbers.copy(), np.full(len(images.names), TRAIN, np.uint8)
    if validation.exists():
        rows = np.flatnonzero(images.numbers == len(classes))
        labels[rows] = _labels([images.names[row] for row in rows.tolist()], wnids, classes, validation)
        splits[rows] = VAL
    else:
        splits = hold_out(images.names, labels, val_fraction)
    listing = Listing(splits, labels, images.sizes, images.names, classes, notes)
    return FileSource("ImageNet-1K tars", folder.resolve().name, images, np.arange(len(labels)), listing)


def _validation_wnids(devkit: Path) -> list[str]:
    """Return the WordNet id of each validation image, in the order of their numbers, which start at 1."""
    if not devkit.exists():
        raise UserError(f"{devkit} is missing: it holds the labels of the validation images, download it too")
    from scipy.io import loadmat

    files = TarFiles(devkit)
    try:
        synsets = loadmat(io.BytesIO(_member(files, "data/meta.mat")), squeeze_me=True)["synsets"]
        leaves = synsets[synsets["num_children"] == 0]
        wnid = {int(number): str(name) for number, name in zip(leaves["ILSVRC2012_ID"], leaves["WNID"])}
        truth = _member(files, "data/ILSVRC2012_validation_ground_truth.txt").decode().split()
        return [wnid[int(number)] for number in truth]
    except UserError:
        raise
    except Exception as error:  # scipy's reader raises nearly anything on damaged bytes
        raise UserError(
            f"{devkit} does not hold the labels in the expected form ({error!r}): download it again"
        ) from None


def _member(files: TarFiles, ending: str) -> bytes:
    row = next((row for row, name in enumerate(files.names) if name.endswith(ending)), None)
    if row is None:
        raise UserError(f"{files.place} holds no {ending}: download it again")
    return files.read(row)


def _labels(names: list[str], wnids: list[str], classes: list[str], validation: Path) -> list[int]:
    number = {wnid: i for i, wnid in enumerate(classes)}
    labels = []
    for name in names:
        found = re.search(r"_(\d+)\.JPEG$", name)
        place = int(found[1]) - 1 if found else -1
        if not 0 <= place < len(wnids) or wnids[place] not in number:
            raise UserError(f"{DEVKIT} and {TRAIN_TAR} give no class for {name} of {validation}: download them again")
        labels.append(number[wnids[place]])
    return labels
