"""Progress of a long command on standard error: a bar on a terminal, and elsewhere a line every few seconds."""

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from data.printable_text import one_line

if TYPE_CHECKING:
    from rich.progress import Progress

SECONDS_BETWEEN_LINES = 10.0


def say(line: str) -> None:
    """Write one line to standard error: standard output may be a pipe that expects results only."""
    print(one_line(line), file=sys.stderr, flush=True)


@contextmanager
def progress(what: str, total: int, unit: str, shown: bool) -> Iterator[Callable[[int], None]]:
    """Yield a function to call with the number of units done so far, as often as convenient.

    Args:
        what: the command or task, which begins each line.
        total: units in all.
        unit: what is counted, in the plural.
        shown: whether to show anything.
    """
    if not shown:
        yield lambda done: None
    elif sys.stderr.isatty():
        with _bar() as bar:
            task = bar.add_task(what, total=total, unit=unit)
            yield lambda done: bar.update(task, completed=done)
    else:
        yield _Lines(what, total, unit).update


def _bar() -> "Progress":
    # Imported here because rich takes a tenth of a second, and most commands show no bar.
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[unit]}"),
        TimeRemainingColumn(),
        console=Console(stderr=True),
    )


class _Lines:
    def __init__(self, what: str, total: int, unit: str):
        self.what, self.total, self.unit = what, total, unit
        self.start = self.last = time.monotonic()
        self.reported = 0

    def update(self, done: int) -> None:
        now = time.monotonic()
        if done > self.reported and (now - self.last >= SECONDS_BETWEEN_LINES or done == self.total):
            self.last, self.reported = now, done
            rate = done / max(now - self.start, 1e-9)
            say(f"{self.what}: {done:,} of {self.total:,} {self.unit}, {rate:,.0f}/s")
