"""Recognises the kind of a source of labelled images, and opens it."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from data.printable_text import printable
from data.sources.base import Source
from data.sources.cats_dogs import cats_dogs, kaggle_download
from data.sources.cifar10 import cifar10
from data.sources.class_folders import class_folders
from data.sources.class_map import MappedSource, read_class_map
from data.sources.digits import Digits
from data.sources.hugging_face import hugging_face
from data.sources.imagenet import TRAIN_TAR, imagenet
from data.sources.imagenet_22k import class_tars, imagenet_22k
from data.sources.imagenet_kaggle import imagenet_kaggle
from data.sources.nested_archives import nested_archives, require_no_shards
from data.sources.open_files import open_files, without_ending
from data.sources.table_labels import table_labels
from data.sources.table_offers import offered_tables
from data.sources.torchvision_sets import PREFIX, TorchvisionSet
from data.sources.webdataset_shards import WebDatasetShards, webdataset_shards
from recipes.errors import UserError
from recipes.user_code import Registry, import_modules, running

# Takes what follows `NAME:` in the source's name, and the fraction of each class to hold out; returns a `Source`.
CustomSource = Callable[[str, float], Source]
custom_sources: Registry[CustomSource] = Registry("source")


@dataclass(frozen=True)
class LabelTables:
    """Tables that hold the labels of images.

    Attributes:
        tables: files on the disk, or inside the source.
        image_column, label_column: names of the columns; None: guessed from their contents.
    """

    tables: tuple[Path, ...]
    image_column: str | None = None
    label_column: str | None = None


def open_source(
    source: str,
    val_fraction: float,
    class_map: Path | None = None,
    workers: int | None = None,
    progress: bool = False,
    labels: LabelTables | None = None,
    modules: Sequence[str] = (),
) -> Source | WebDatasetShards:
    """Return the source with its images listed, after recognising its kind.

    Args:
        source: a path, the word `digits`, ``torchvision:NAME:ROOT``, or ``NAME:LOCATION`` of a registered source.
        val_fraction: fraction of each class to hold out for validation if the source has no validation images.
        class_map: a file in the form that `data.sources.class_map.read_class_map` describes.
        workers: processes that list a source of many tars; None: one per usable core.
        progress: show the progress of a long listing.
        labels: tables that hold the labels of the images; None: the source's folders or its own format hold them.
        modules: the user's modules that register sources.

    Raises:
        UserError: there is no such source, its kind is not known, or it is damaged.
    """
    if not 0 <= val_fraction <= 1:
        raise UserError(f"a validation fraction of {val_fraction} is not valid: give one from 0 to 1, e.g. 0.1")
    path = Path(source).expanduser()
    found: Source
    if custom := _custom(source, val_fraction, modules):
        found = custom
    elif labels is not None:
        files = open_files(path)
        files = nested_archives(files) or files
        found = table_labels(files, _name(path), val_fraction, labels.tables, labels.image_column, labels.label_column)
    elif source == "digits":
        found = Digits(val_fraction)
    elif source.startswith(PREFIX):
        found = TorchvisionSet(source, val_fraction)
    elif shards := _shards(path, source, class_map):
        return shards
    else:
        found = (
            _tars(path, val_fraction, workers, progress)
            or hugging_face(path, _name(path), val_fraction)
            or _files(path, val_fraction, class_map)
        )
    if class_map is not None:
        found = MappedSource(found, class_map)
    if not len(found.listing):
        raise UserError(f"{source} names classes, but holds no images of them: check that it is whole")
    return found


def _custom(source: str, val_fraction: float, modules: Sequence[str]) -> Source | None:
    """Return the registered source that ``NAME:LOCATION`` names; None if nothing is registered under the name."""
    import_modules(modules)
    name, colon, location = source.partition(":")
    if not colon or name not in custom_sources:
        return None
    make = custom_sources.get(name, modules)
    with running(f"source {name}"):
        found = make(location, val_fraction)
    if not isinstance(found, Source):
        raise UserError(
            f"source {name} of your own code returns {type(found).__name__}: return a data.sources.base.Source"
        )
    return found


def _shards(path: Path, source: str, class_map: Path | None) -> WebDatasetShards | None:
    if path.name == TRAIN_TAR or (path.is_dir() and ((path / TRAIN_TAR).exists() or class_tars(path))):
        return None
    return webdataset_shards(source, class_map)


def _tars(path: Path, val_fraction: float, workers: int | None, progress: bool) -> Source | None:
    if path.name == TRAIN_TAR and path.is_file():
        path = path.parent
    if not path.is_dir():
        return None
    if (path / TRAIN_TAR).exists():
        return imagenet(path, val_fraction, workers, progress)
    return imagenet_22k(path, val_fraction, workers, progress) if class_tars(path) else None


def _files(path: Path, val_fraction: float, class_map: Path | None) -> Source:
    files = open_files(path)
    name, known = _name(path), read_class_map(class_map) if class_map else ()
    if found := kaggle_download(files, name, val_fraction):
        return found
    if nested := nested_archives(files):
        require_no_shards(nested)
        files = nested.joined()
    return (
        cifar10(files, name, val_fraction)
        or imagenet_kaggle(files, name)
        or cats_dogs(files, name, val_fraction)
        or class_folders(files, name, val_fraction, known, offered_tables)
    )


def _name(path: Path) -> str:
    # Unlike `resolve`, `realpath` lets links that lead in a circle pass.
    return printable(without_ending(Path(os.path.realpath(path)).name))
