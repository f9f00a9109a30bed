"""Reads tables: CSV from a spreadsheet or a script, TSV, JSON, JSON lines, parquet, lists of images and labels."""

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from data.printable_text import one_line
from recipes.errors import UserError
from recipes.parsing import parse_json

TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_SPREADSHEETS = (".xlsx", ".xls", ".ods", ".numbers")
_DELIMITERS = ",;\t|"
_TOLD_DELIMITER = re.compile("sep=([,;\t|])")  # the first line that Excel reads, and no row of the table
_BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16", b"\xef\xbb\xbf": "utf-8-sig"}


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        name: for messages.
        columns: names of the columns.
        rows: the cells of each row, in the order of the columns; missing cells are empty.
    """

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]

    def column(self, name: str) -> list[str]:
        """Return the cells of a column.

        Raises:
            UserError: there is no such column.
        """
        if name not in self.columns:
            raise UserError(f"{self.name} has no column {name!r}, only {', '.join(map(repr, self.columns))}")
        number = self.columns.index(name)
        return [row[number] for row in self.rows]


def read_table(name: str, contents: bytes) -> Table:
    """Return the table in a file; the ending of its name determines the format.

    Raises:
        UserError: it has no rows, or is damaged.
    """
    ending = PurePosixPath(name).suffix.lower()
    if ending == ".parquet":
        table = _parquet(name, contents)
    elif ending in (".jsonl", ".ndjson"):
        table = _json_lines(name, text_of(name, contents))
    elif ending == ".json":
        table = _json(name, text_of(name, contents))
    elif ending in _SPREADSHEETS:
        raise UserError(f"{name} is a spreadsheet, which is not read: save it as CSV")
    elif ending == ".txt" and not set(_DELIMITERS) & set(text_of(name, contents).split("\n", 1)[0]):
        table = _lines(name, text_of(name, contents))
    else:
        table = _separated(name, text_of(name, contents), "\t" if ending == ".tsv" else None)
    if not table.rows:
        raise UserError(f"{name} has no rows: give a table with a row per image")
    return table


def text_of(name: str, contents: bytes) -> str:
    """Return the text of a file in UTF-8, UTF-16 with a byte order mark, or else Windows-1252.

    Raises:
        UserError: it holds zero bytes, so it is not text.
    """
    encoding = next((known for mark, known in _BYTE_ORDER_MARKS.items() if contents.startswith(mark)), "utf-8")
    try:
        text = contents.decode(encoding)
    except UnicodeDecodeError:
        text = contents.decode("cp1252", "replace")
    if "\0" in text:
        raise UserError(f"{name} is not text: give a table as CSV, TSV or JSON lines")
    return text


def delimiter_of(line: str) -> str:
    """Return the delimiter of a line: the one that occurs most often, a comma if none does.

    Spreadsheets write semicolons in countries where the comma is the decimal separator.
    """
    return max(_DELIMITERS, key=line.count)


def _separated(name: str, text: str, delimiter: str | None) -> Table:
    first, _, rest = text.partition("\n")
    if told := _TOLD_DELIMITER.fullmatch(first.strip()):
        delimiter, text = told[1], rest
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter or delimiter_of(first)))
    except csv.Error as error:
        raise UserError(one_line(f"{name} is damaged ({error}): write the table again as CSV")) from None
    filled = [[cell.strip() for cell in line] for line in lines if any(cell.strip() for cell in line)]
    if not filled:
        return Table(name, [], [])
    width = len(filled[0])
    for line in filled[1:]:
        if any(line[width:]):
            raise UserError(
                one_line(
                    f"{name} has {width} columns, but a row of {len(line)} cells ({', '.join(line[:4])}): put quotes "
                    f"around cells that hold a delimiter, and give each column a name"
                )
            )
    while width > 1 and not filled[0][width - 1]:  # spreadsheets add empty columns at the right
        width -= 1
    rows = [(line + [""] * width)[:width] for line in filled[1:]]
    return Table(name, filled[0][:width], rows)


def _lines(name: str, text: str) -> Table:
    """Return a table without a header: each line is an image, which may have spaces in its name, and a label."""
    rows = [line.rsplit(None, 1) for line in text.splitlines() if line.strip()]
    if short := [row for row in rows if len(row) < 2]:
        raise UserError(f"{name} has the line {short[0][0]!r} without a label: write an image and a label in each line")
    return Table(name, ["image", "label"], rows)


def _json(name: str, text: str) -> Table:
    """Return the table in a JSON object ``{"image": "label"}``, or in a list of objects with equal keys."""
    try:
        found = parse_json(text)
    except ValueError as error:
        raise UserError(one_line(f"{name} is not valid JSON ({error}): write it again")) from None
    if isinstance(found, dict) and all(isinstance(label, (str, int)) for label in found.values()):
        return Table(name, ["image", "label"], [[image, str(label)] for image, label in found.items()])
    if isinstance(found, list) and all(isinstance(row, dict) for row in found):
        return _of_objects(name, found)
    raise UserError(f'{name} is neither of the form {{"image": "label"}} nor a list of such objects: give a CSV')


def _json_lines(name: str, text: str) -> Table:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = parse_json(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise UserError(f"line {number} of {name} is not a JSON object: write one object per image and line")
            found.append(row)
    return _of_objects(name, found)


def _of_objects(name: str, found: list[dict[str, Any]]) -> Table:
    columns = list(dict.fromkeys(key for row in found for key in row))
    rows = [["" if row.get(key) is None else str(row[key]) for key in columns] for row in found]
    return Table(name, columns, rows)


def _parquet(name: str, contents: bytes) -> Table:
    try:
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{name} is parquet, which pyarrow reads: `pip install pyarrow`, or give a CSV") from None
    try:
        table = parquet.read_table(io.BytesIO(contents))
        names = list(table.column_names)
        columns = [["" if cell is None else str(cell) for cell in column.to_pylist()] for column in table.columns]
    except Exception as error:  # pyarrow raises almost any exception on damaged bytes
        raise UserError(one_line(f"{name} is not a whole parquet file ({error}): write it again")) from None
    return Table(name, names, [list(row) for row in zip(*columns)])
