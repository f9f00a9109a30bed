"""Reads tables: CSV from a spreadsheet or a script, TSV, JSON lines, parquet."""

import csv
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from recipes.errors import UserError

TABLE_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".parquet")
_DELIMITERS = ",;\t|"
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
    first = text.split("\n", 1)[0]
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter or delimiter_of(first)))
    except csv.Error as error:
        raise UserError(f"{name} is damaged ({error}): write the table again as CSV") from None
    filled = [[cell.strip() for cell in line] for line in lines if any(cell.strip() for cell in line)]
    if not filled:
        return Table(name, [], [])
    width = len(filled[0])
    while width > 1 and not filled[0][width - 1]:  # spreadsheets add empty columns at the right
        width -= 1
    rows = [(line + [""] * width)[:width] for line in filled[1:]]
    return Table(name, filled[0][:width], rows)


def _json_lines(name: str, text: str) -> Table:
    found = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip():
            try:
                row = json.loads(line)
            except ValueError:
                row = None
            if not isinstance(row, dict):
                raise UserError(f"line {number} of {name} is not a JSON object: write one object per image and line")
            found.append(row)
    columns = list(dict.fromkeys(key for row in found for key in row))
    rows = [["" if row.get(key) is None else str(row[key]) for key in columns] for row in found]
    return Table(name, columns, rows)


def _parquet(name: str, contents: bytes) -> Table:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError:
        raise UserError(f"{name} is parquet, which pyarrow reads: `pip install pyarrow`, or give a CSV") from None
    try:
        table = parquet.read_table(io.BytesIO(contents))
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{name} is not a whole parquet file ({error}): write it again") from None
    columns = [["" if cell is None else str(cell) for cell in column.to_pylist()] for column in table.columns]
    return Table(name, list(table.column_names), [list(row) for row in zip(*columns)])
