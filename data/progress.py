"""Progress of a long command: a bar on a terminal, a line now and then elsewhere. Writes to standard error only."""

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

SECONDS_BETWEEN_LINES = 10.0


def say(line: str) -> None:
    """Write one line for the user, without disturbing what a pipe reads from standard output."""
    print(line, file=sys.stderr, flush=True)


@contextmanager
def progress(what: str, total: int, unit: str, shown: bool) -> Iterator:
    """Yield a function that takes how many of `total` units are done; call it as often as convenient."""
    if not shown:
        yield lambda done: None
    elif sys.stderr.isatty():
        with _bar() as bar:
            task = bar.add_task(what, total=total, unit=unit)
            yield lambda done: bar.update(task, completed=done)
    else:
        yield _Lines(what, total, unit).update


def _bar():
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
        self.told = 0

    def update(self, done: int) -> None:
        now = time.monotonic()
        if done > self.told and (now - self.last >= SECONDS_BETWEEN_LINES or done == self.total):
            self.last, self.told = now, done
            rate = done / max(now - self.start, 1e-9)
            say(f"{self.what}: {done:,} of {self.total:,} {self.unit}, {rate:,.0f}/s")
