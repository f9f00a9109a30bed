"""Data sets of torchvision, already downloaded: ``torchvision:Flowers102:/path/given/as/root``.

Images that torchvision keeps as files are stored unchanged; those that it keeps as arrays are stored as PNG.
"""

import inspect
import io
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.sources.base import Listing, Names, Source, require_classes
from data.sources.splits import SPLITS, TEST, TRAIN, VAL, with_validation
from recipes.errors import UserError
from recipes.local_paths import local_path

if TYPE_CHECKING:
    from torchvision.datasets import VisionDataset

PREFIX = "torchvision:"
_SPLIT_NAMES = {TRAIN: ("train", "trainval"), VAL: ("val", "valid"), TEST: ("test",)}  # the first that a set has
_FILE_LISTS = ("_image_files", "_images", "data")
_SAMPLE_LISTS = ("samples", "_samples", "imgs")
_LABEL_LISTS = ("targets", "_labels", "labels", "y")


class TorchvisionSet(Source):
    """The training images of a torchvision set and, if it has them, its validation and test images.

    Raises:
        UserError: torchvision has no such set of labelled images, or does not find its files below the root.
    """

    kind = "torchvision"

    def __init__(self, source: str, val_fraction: float):
        _, name, root = (source + "::").split(":", 2)
        root = root.removesuffix("::").removesuffix(":")
        if not name or not root:
            raise UserError(f"{source!r} is not of the form torchvision:NAME:ROOT, e.g. torchvision:Flowers102:/data")
        self.name, folder = name, local_path(root)
        parts, notes = _parts(_dataset_class(name), name, folder)
        self._parts, self._splits = list(parts.values()), list(parts)
        self._files = [_files(part) for part in self._parts]
        labels = [_labels(part, files) for part, files in zip(self._parts, self._files)]
        counts = [len(of_part) for of_part in labels]
        self._part_of = np.repeat(np.arange(len(counts)), counts)
        self._row_of = np.concatenate([np.arange(count) for count in counts])
        classes = _classes(self._parts[0], max((int(of_part.max()) for of_part in labels if len(of_part)), default=-1))
        require_classes(classes, f"torchvision's {name}")
        names = Names(self._names(folder, counts))
        sizes = np.array(
            [_size(files, row) for files, count in zip(self._files, counts) for row in range(count)], np.int64
        )
        joined = np.concatenate(labels).astype(np.int32)
        own = np.array(self._splits, np.uint8)[self._part_of]
        splits, held_out = with_validation(own, names, joined, val_fraction)
        self.listing = Listing(splits, joined, sizes, names, classes, [*notes, *held_out])

    def read(self, i: int) -> bytes:
        part, row = int(self._part_of[i]), int(self._row_of[i])
        files = self._files[part]
        if files is not None:
            return files[row].read_bytes()
        stored = io.BytesIO()
        self._parts[part][row][0].save(stored, "PNG")
        return stored.getvalue()

    def _names(self, root: Path, counts: list[int]) -> Iterator[str]:
        for part, (files, count) in enumerate(zip(self._files, counts)):
            for row in range(count):
                if files is None:
                    yield f"{SPLITS[self._splits[part]]}/{row:06d}"
                else:
                    path = files[row]
                    yield str(path.relative_to(root) if path.is_relative_to(root) else path)


def _dataset_class(name: str) -> "type[VisionDataset]":
    from torchvision import datasets

    found = getattr(datasets, name, None) if name in datasets.__all__ else None
    if inspect.isclass(found) and issubclass(found, datasets.VisionDataset) and found is not datasets.VisionDataset:
        return found
    raise UserError(f"torchvision has no data set {name!r}: write it as in torchvision.datasets, e.g. Flowers102")


def _parts(kind: "type[VisionDataset]", name: str, root: Path) -> "tuple[dict[int, VisionDataset], list[str]]":
    """Return the set's parts by their split, an index into `SPLITS`, and notes about splits that cannot be opened."""
    parameters = inspect.signature(kind).parameters
    choices: dict[int, list[dict[str, str | bool]]]
    if "split" in parameters:
        choices = {split: [{"split": name} for name in names] for split, names in _SPLIT_NAMES.items()}
    elif "train" in parameters:
        choices = {TRAIN: [{"train": True}], TEST: [{"train": False}]}
    else:
        choices = {TRAIN: [{}]}
    parts: dict[int, VisionDataset] = {}
    notes = []
    for split, tries in choices.items():
        part = _first(kind, root, tries)
        reason = " ".join(str(part).split()) if isinstance(part, Exception) else ""
        if not isinstance(part, Exception):
            parts[split] = part
        elif split == TRAIN:
            raise UserError(f"torchvision cannot open {name} in {root} ({reason}): download it there first")
        elif not isinstance(part, ValueError):  # which means that the set has no such split
            notes.append(f"left out the {SPLITS[split]} split of {name}, which torchvision cannot open: {reason}")
    return parts, notes


def _first(kind: "type[VisionDataset]", root: Path, tries: list[dict[str, str | bool]]) -> "VisionDataset | Exception":
    """Return the set opened with the first arguments that it accepts, or else the error that prevents it."""
    problem: Exception = ValueError("no split")
    for arguments in tries:
        try:
            return kind(str(root), **arguments)
        except ValueError as error:  # the set has no split of that name
            problem = error
        except Exception as error:  # each set has its own exception for missing files
            return error
    return problem


def _files(part: "VisionDataset") -> list[Path] | None:
    for attribute in _FILE_LISTS:
        found = getattr(part, attribute, None)
        if found is not None and len(found) == len(part) and isinstance(found[0], (str, Path)):
            return [Path(path) for path in found]
    for attribute in _SAMPLE_LISTS:
        found = getattr(part, attribute, None)
        if found is not None and len(found) == len(part) and isinstance(found[0][0], (str, Path)):
            return [Path(sample[0]) for sample in found]
    return None


def _labels(part: "VisionDataset", files: list[Path] | None) -> NDArray[np.integer]:
    if files is not None:
        for attribute in _SAMPLE_LISTS:
            found = getattr(part, attribute, None)
            if found is not None and len(found) == len(part):
                return np.array([sample[1] for sample in found], np.int64)
    elif not (isinstance(part[0], tuple) and isinstance(part[0][0], Image.Image)):
        raise _unlabelled(part)
    for attribute in _LABEL_LISTS:
        found = getattr(part, attribute, None)
        if found is not None and len(found) == len(part):
            return _integers(part, found)
    return _integers(part, [part[row][1] for row in range(len(part))])


def _integers(part: "VisionDataset", labels: object) -> NDArray[np.integer]:
    found = np.asarray(labels)
    if found.ndim != 1 or found.dtype.kind not in "iu" or (len(found) and found.min() < 0):
        raise _unlabelled(part)
    return found


def _unlabelled(part: "VisionDataset") -> UserError:
    return UserError(f"torchvision's {type(part).__name__} does not give each image one class: choose another data set")


def _classes(part: "VisionDataset", highest: int) -> list[str]:
    names = getattr(part, "classes", None)
    if isinstance(names, (list, tuple)) and len(names) > highest:
        return [name if isinstance(name, str) else ", ".join(map(str, name)) for name in names]
    return [str(number) for number in range(highest + 1)]


def _size(files: list[Path] | None, row: int) -> int:
    return 3072 if files is None else files[row].stat().st_size  # most sets of arrays have 32x32 pixels
