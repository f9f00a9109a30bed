"""``metrics.jsonl``, the log of a run: one JSON object per line for every start, step, evaluation and checkpoint.

Every event has `event` (its kind), `time` (Unix seconds) and `step` (optimizer steps finished). A line is appended as
its event happens, so a kill can cut the last one short. Readers skip every line that is not such an event, and every
event with a value of another type than its key has (`launcher.runs.event_keys`).
"""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from data.atomic_io import write_durably
from launcher.runs.event_keys import is_event
from recipes.errors import UserError
from recipes.parsing import parse_json

_TAIL = 512 * 1024  # bytes at the end of the file that `recent` reads: more than a thousand steps
# The key of the top-1 accuracy of each kind of weights in an event of an evaluation.
TOP1_KEYS = {"EMA": "ema_top1", "raw": "top1"}


class Metrics:
    """The events of one run: appended by the main process of its training, read by every command that shows the run."""

    def __init__(self, path: Path):
        self.path = path

    def append(self, event: str, step: int, **values: object) -> None:
        """Append one event of that kind after `step` finished steps.

        Raises:
            UserError: the file cannot be written, e.g. because the disk is full.
        """
        line = json.dumps({"event": event, "time": round(time.time(), 3), "step": step, **values}) + "\n"
        try:
            with self.path.open("a", encoding="utf-8") as file:
                file.write(line)
        except OSError as error:
            raise self._unwritable(error) from None

    def events(self) -> list[dict]:
        """Return all events, oldest first; none where there is no file yet.

        Raises:
            UserError: the file cannot be read.
        """
        return self._read(None)

    def recent(self) -> list[dict]:
        """Return the events in the last 512 KiB of the file, oldest first, however long the run is.

        Raises:
            UserError: the file cannot be read.
        """
        return self._read(_TAIL)

    def truncate_after(self, step: int) -> None:
        """Remove the events of later steps: the run resumes from `step` and repeats them.

        Raises:
            UserError: the file cannot be read or written.
        """
        self._write(event for event in self.events() if event["step"] <= step)

    def write_shared(self, events: Iterable[dict]) -> None:
        """Begin the file of a branch with the events that it shares with its parent, each marked `shared`.

        Raises:
            UserError: the file cannot be written.
        """
        self._write({**event, "shared": True} for event in events)

    def best(self) -> "BestAccuracy | None":
        """Return the highest accuracy of the run so far, as `best_accuracy`."""
        return best_accuracy(event for event in self.events() if event["event"] == "evaluation")

    def _write(self, events: Iterable[dict]) -> None:
        lines = "".join(json.dumps(event) + "\n" for event in events)
        try:
            write_durably(self.path, lines.encode())
        except OSError as error:
            raise self._unwritable(error) from None

    def _read(self, tail: int | None) -> list[dict]:
        if not self.path.exists():
            return []
        try:
            with self.path.open("rb") as file:
                size = file.seek(0, 2)
                start = 0 if tail is None else max(0, size - tail)
                file.seek(start)
                # A block from the middle of the file begins inside a line, so its first line is incomplete.
                lines = file.read().splitlines()[1 if start else 0 :]
        except OSError as error:
            raise UserError(f"{self.path} cannot be read ({error.strerror}): check the run directory") from None
        return [event for line in lines if (event := _parse(line)) is not None]

    def _unwritable(self, error: OSError) -> UserError:
        return UserError(
            f"{self.path} cannot be written ({error.strerror}): make room or check the file system, then give the same "
            f"command again"
        )


@dataclass(frozen=True)
class BestAccuracy:
    """The highest top-1 accuracy of some evaluations, in 0..1.

    Attributes:
        kind: of the weights that reached it, "raw" or "EMA".
        step: optimizer steps finished when they were evaluated.
    """

    top1: float
    kind: str
    step: int


def best_accuracy(evaluations: Iterable[dict], kinds: Iterable[str] = ("EMA", "raw")) -> BestAccuracy | None:
    """Return the highest top-1 that these kinds of weights reached in evaluation events; None without any.

    Among equal accuracies the earliest is returned, so that the best checkpoint changes only with a higher accuracy. If
    raw and EMA weights are equal at one step, it is that of EMA, which `bigbatch export` writes by default.
    """
    reached = [
        BestAccuracy(event[TOP1_KEYS[kind]], kind, event["step"])
        for event in evaluations
        for kind in kinds
        if event.get(TOP1_KEYS[kind]) is not None
    ]
    return max(reached, key=lambda best: (best.top1, -best.step), default=None)


def _parse(line: bytes) -> dict | None:
    """Return the event of a line; None if a kill cut the line short, or it is no event or a damaged one."""
    try:
        event = parse_json(line)
    except ValueError:
        return None
    return event if is_event(event) else None
