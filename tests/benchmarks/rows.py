"""Rows of figures in a file, one JSON object a line, appended as soon as they are measured.

A measurement that was cut short continues: before each figure it asks `is_measured` whether the file has it already.
"""

import argparse
import json
from pathlib import Path
from typing import Any

LEFT_OUT = 3  # exit code of a measurement that left something out and can go on


def add_rows_option(parser: argparse.ArgumentParser) -> None:
    """Add the option `--rows FILE`."""
    help_ = "also append the figures to this file, one JSON object a line; what it has already is not measured again"
    parser.add_argument("--rows", type=Path, help=help_)


def write_row(file: Path | None, row: dict[str, Any]) -> None:
    """Append a row to the file, if there is one. A row that names no device gets this process's."""
    if file:
        # A process that was killed may have left half a row, to which this one must not be joined.
        torn = file.exists() and not file.read_bytes().endswith(b"\n")
        with file.open("a") as output:
            output.write(("\n" if torn else "") + json.dumps(_with_device(row)) + "\n")


def read_rows(file: Path) -> list[dict[str, Any]]:
    """Return the whole rows of a file; none if it does not exist."""
    if not file.exists():
        return []
    rows = []
    for line in file.read_text(errors="replace").splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue  # half a row, left by a process that was killed
    return rows


def is_measured(file: Path | None, **values: Any) -> bool:
    """Return whether the file has a row with these values; a row of another device does not count."""
    if file is None or not file.exists():
        return False
    wanted = _with_device(values).items()
    return any(wanted <= row.items() for row in read_rows(file))


def _with_device(row: dict[str, Any]) -> dict[str, Any]:
    if "device" in row:
        return row
    import torch  # slow, and the process that starts the stages names the device itself

    return row | {"device": torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"}
