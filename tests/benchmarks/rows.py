"""Rows of figures in a file, one JSON object a line, appended as soon as they are measured."""

import argparse
import json
from pathlib import Path
from typing import Any


def add_rows_option(parser: argparse.ArgumentParser) -> None:
    """Add the option `--rows FILE`."""
    parser.add_argument("--rows", type=Path, help="also append the figures to this file, one JSON object a line")


def write_row(file: Path | None, row: dict[str, Any]) -> None:
    """Append a row to the file, if there is one."""
    if file:
        with file.open("a") as output:
            output.write(json.dumps(row) + "\n")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the rows of a file; none if it does not exist."""
    return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []
