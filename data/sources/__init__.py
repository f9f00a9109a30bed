"""Where images come from: one file per kind of source, and the choice among them."""

from pathlib import Path

from data.sources.base import Source
from data.sources.cats_dogs import cats_dogs, inner_archive
from data.sources.class_map import MappedSource
from data.sources.class_folders import class_folders
from data.sources.digits import Digits
from data.sources.files import TAR_ENDINGS, open_files
from recipes.errors import UserError


def open_source(source: str, val_fraction: float, class_map: Path | None = None) -> Source:
    """Recognise a source and list its images.

    Args:
        source: a path, or the word `digits`.
        val_fraction: share of each class held out for validation where the source has no validation images.
        class_map: a file as `data.sources.class_map.read_class_map` takes it.

    Raises:
        UserError: nothing is there, nothing in it is known, or it is damaged.
    """
    if not 0 <= val_fraction < 1:
        raise UserError(f"a validation share of {val_fraction} is not possible: give one from 0 to below 1, e.g. 0.1")
    found = _recognised(source, val_fraction)
    return found if class_map is None else MappedSource(found, class_map)


def _recognised(source: str, val_fraction: float) -> Source:
    if source == "digits":
        return Digits(val_fraction)
    path = Path(source)
    files = open_files(path)
    files = inner_archive(files) or files
    name = _name(path)
    return cats_dogs(files, name, val_fraction) or class_folders(files, name, val_fraction)


def _name(path: Path) -> str:
    name = path.resolve().name
    for ending in (".zip", *sorted(TAR_ENDINGS, key=len, reverse=True)):
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name
