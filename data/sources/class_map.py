"""A class map: renames or renumbers the classes of a source, merges several into one, or keeps only some of them."""

import csv
import re
from pathlib import Path

import numpy as np

from data.printable_text import composed, one_line
from data.sources.base import Listing, Names, Source, require_classes
from data.sources.tables import delimiter_of, text_of
from recipes.errors import UserError
from recipes.parsing import parse_json


def read_class_map(path: Path) -> dict[str, str | int]:
    """Return the new name or number of each class of the source, which most kinds name after its folder.

    The file is JSON, ``{"n01440764": "tench"}``, or text with one class per line, ``n01440764 tench``. In text,
    the separator is that of the table if the file ends in .csv, or else a tab if the line has one, or else the first
    white space.

    Raises:
        UserError: the file is missing, cannot be read, or has another form.
    """
    try:
        if path.exists() and not path.is_file():  # reading a FIFO would wait for a writer for ever
            raise UserError(f"the class map {path} is not a file")
        text = text_of(str(path), path.read_bytes())
    except OSError as error:
        raise UserError(f"the class map {path} cannot be read: {error.strerror or error}") from None
    if path.suffix.lower() == ".json":
        return _from_json(path, text)
    found: dict[str, str | int] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip():
            continue
        if path.suffix.lower() == ".csv":
            cells = next(csv.reader([line], delimiter=delimiter_of(line)))
            # An unquoted comma in the second column belongs to the class name, e.g. "n01440764,tench, Tinca tinca".
            parts = [cells[0].strip(), delimiter_of(line).join(cells[1:]).strip(" ;\t")]
        else:
            parts = [part.strip() for part in line.strip().split("\t" if "\t" in line else None, 1)]
        if len(parts) != 2 or not all(parts):
            raise UserError(f"line {number} of the class map {path} is not a folder and a class: {line.strip()!r}")
        found[parts[0]] = int(parts[1]) if re.fullmatch(r"\d{1,18}", parts[1]) else parts[1]
    return found


def _from_json(path: Path, text: str) -> dict[str, str | int]:
    try:
        found = parse_json(text)
    except ValueError as error:
        raise UserError(one_line(f"the class map {path} is not valid JSON: {error}")) from None
    if not isinstance(found, dict) or not all(type(value) in (str, int) for value in found.values()):
        raise UserError(f'the class map {path} must be of the form {{"folder": "class name or number"}}')
    return found


def renumber(old: list[str], given: dict[str, str | int], path: Path) -> tuple[dict[str, int], list[str]]:
    """Return the new number of each old class that is kept, and the new names in their order.

    Raises:
        UserError: the map `given`, read from `path`, names none of the old classes, or its numbers have gaps.
    """
    by_composed = {composed(name): value for name, value in given.items()}
    kept = {name: by_composed[composed(name)] for name in old if composed(name) in by_composed}
    if not kept:
        raise UserError(f"the class map {path} names none of the classes, which are {', '.join(old[:3])}, …")
    numbers = {name: value for name, value in kept.items() if isinstance(value, int)}
    new_names = {name: value for name, value in kept.items() if isinstance(value, str)}
    if not new_names:
        name_of: dict[int, str] = {}
        for name, number in numbers.items():
            name_of.setdefault(number, name)
        if sorted(name_of) != list(range(len(name_of))):
            raise UserError(f"the numbers in the class map {path} must be 0 to {len(name_of) - 1} without a gap")
        return numbers, [name_of[number] for number in range(len(name_of))]
    if not numbers:
        classes = list(dict.fromkeys(new_names.values()))  # in the order of the old classes
        return {name: classes.index(value) for name, value in new_names.items()}, classes
    raise UserError(f"the class map {path} must give either names or numbers, not both")


class MappedSource(Source):
    """The images of a source whose classes are in a class map, with the classes that the map gives them."""

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

    def prepare(self) -> None:
        self._source.prepare()

    def read(self, i: int) -> bytes:
        return self._source.read(int(self._rows[i]))
