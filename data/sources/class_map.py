"""Other names or numbers for a source's classes, a joining of several into one, or a choice of some."""

import json
import re
from pathlib import Path

import numpy as np

from data.sources.base import Listing, Names, Source, require_classes
from recipes.errors import UserError


def read_class_map(path: Path) -> dict[str, str | int]:
    """Return what each class of the source, for most kinds a folder, is to be called, or which number it is to have.

    The file is JSON, ``{"n01440764": "tench"}``, or text with one class per line, ``n01440764 tench``, where a tab, a
    comma (if the file ends in .csv) or the first white space separates the two.

    Raises:
        UserError: there is no such file, or it is of another form.
    """
    try:
        text = path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"the class map {path} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    if path.suffix.lower() == ".json":
        return _from_json(path, text)
    found = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        separator = "," if path.suffix.lower() == ".csv" else "\t" if "\t" in line else None
        parts = [part.strip() for part in line.strip().split(separator, 1)]
        if len(parts) != 2 or not all(parts):
            raise UserError(f"line {number} of the class map {path} is not a folder and a class: {line.strip()!r}")
        found[parts[0]] = int(parts[1]) if re.fullmatch(r"\d+", parts[1]) else parts[1]
    return found


def _from_json(path: Path, text: str) -> dict[str, str | int]:
    try:
        found = json.loads(text)
    except ValueError as error:
        raise UserError(f"the class map {path} is not valid JSON: {error}") from None
    if not isinstance(found, dict) or not all(type(value) in (str, int) for value in found.values()):
        raise UserError(f'the class map {path} must be of the form {{"folder": "class name or number"}}')
    return found


def renumber(old: list[str], given: dict[str, str | int], path: Path) -> tuple[dict[str, int], list[str]]:
    """Return the new number of each old class that is kept, and the new names in their order.

    Raises:
        UserError: the map `given`, read from `path`, fits none of the old classes or leaves numbers out.
    """
    kept = {name: given[name] for name in old if name in given}
    if not kept:
        raise UserError(f"the class map {path} names none of the classes, which are {', '.join(old[:3])}, …")
    kinds = {type(value) for value in kept.values()}
    if kinds == {int}:
        names = {}
        for name, number in kept.items():
            names.setdefault(number, name)
        if sorted(names) != list(range(len(names))):
            raise UserError(f"the numbers in the class map {path} must be 0 to {len(names) - 1} without a gap")
        return kept, [names[number] for number in range(len(names))]
    if kinds == {str}:
        classes = list(dict.fromkeys(kept.values()))  # in the order of the folders
        return {name: classes.index(value) for name, value in kept.items()}, classes
    raise UserError(f"the class map {path} must give either names or numbers, not both")


class MappedSource(Source):
    """The images of a source whose class is in a class map, under the classes that the map gives."""

    def __init__(self, source: Source, class_map: Path):
        self.kind, self.name, self._source = source.kind, source.name, source
        old = source.listing
        number_of, classes = renumber(old.classes, read_class_map(class_map), class_map)
        labels = np.array([number_of.get(name, -1) for name in old.classes], np.int32)[old.labels]
        self._rows = np.flatnonzero(labels >= 0)
        require_classes(classes, f"{source.name} with {class_map}")
        notes = list(old.notes)
        if left_out := len(old.classes) - len(number_of):
            notes.append(
                f"left out {len(old) - len(self._rows):,} images of {left_out} classes that {class_map} does not name"
            )
        names = Names(old.names[row] for row in self._rows.tolist())
        self.listing = Listing(old.splits[self._rows], labels[self._rows], old.sizes[self._rows], names, classes, notes)

    def read(self, i: int) -> bytes:
        return self._source.read(int(self._rows[i]))
