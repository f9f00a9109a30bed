"""Finds the line of a log that says why a program failed."""

import os
import re
from pathlib import Path

_TAIL = 65536  # bytes at the end of a log that are searched
# Our own sentences, and the last line of a Python traceback; torch may put the rank in front.
_ERROR_LINE = re.compile(r"(?:\[rank\d+\]:\s?)?((?:error: |(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b).*)")


def last_error_line(log: Path, start: int = 0) -> str:
    """Return the last error message of a log from the byte `start` on; empty if there is none."""
    try:
        with log.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(start, size - _TAIL))
            lines = file.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    found = [match[1] for line in lines if (match := _ERROR_LINE.match(line))]
    return found[-1].strip() if found else ""
