"""A job's records in its folder: starts, ends, failures, the attempt that owns the job, and a heartbeat.

Everything that a person or the next start of the job needs can be read here without asking SLURM.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from data.atomic_io import write_atomically
from recipes.parsing import parse_json

Event = dict[str, Any]  # one line of events.jsonl


@dataclass(frozen=True)
class Attempt:
    """One start of a job: the job's id, and how often SLURM had restarted it before."""

    job_id: str
    restart: int

    def __str__(self) -> str:
        return f"{self.job_id}.{self.restart}"


@dataclass(frozen=True)
class Failure:
    """How one rank of an attempt failed."""

    time: float  # seconds since 1970
    rank: int
    node: str
    code: int  # exit code; negative: the signal that killed it
    message: str  # the last error message it printed, empty if there was none

    def __str__(self) -> str:
        if self.message:
            reason = self.message
        elif self.code == -9:
            reason = "killed by signal 9, often because memory ran out"
        else:
            reason = f"killed by signal {-self.code}" if self.code < 0 else f"exit code {self.code}"
        return f"rank {self.rank} on {self.node}: {reason}"


class Ledger:
    """``events.jsonl``, ``owner.json``, ``alive`` and ``failures/`` in a job's folder."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.events_file = folder / "events.jsonl"
        self.owner_file = folder / "owner.json"
        self.alive_file = folder / "alive"
        self.failures_folder = folder / "failures"

    def log(self, event: str, attempt: Attempt | None = None, **values: object) -> None:
        """Append one event."""
        where = {"job": attempt.job_id, "restart": attempt.restart} if attempt else {}
        with self.events_file.open("a") as file:
            file.write(json.dumps({"event": event, "time": round(time.time(), 3), **where, **values}) + "\n")

    def take_back(self, event: str) -> None:
        """Remove the last event if it is of this kind. The job must not be queued, as nobody else may write now."""
        lines = self.events_file.read_text().splitlines(keepends=True) if self.events_file.is_file() else []
        if lines and parse_json(lines[-1])["event"] == event:
            write_atomically(self.events_file, "".join(lines[:-1]).encode())

    def events(self, *kinds: str) -> list[Event]:
        """Return all events, or those of some kinds, oldest first; cut-off or damaged lines are skipped."""
        found: list[Event] = []
        # Undecodable bytes are replaced, so that one damaged line does not hide the others.
        text = self.events_file.read_text(errors="replace") if self.events_file.is_file() else ""
        for line in text.splitlines():
            try:
                event = parse_json(line)
            except ValueError:
                continue
            if isinstance(event, dict) and isinstance(event.get("event"), str):
                found.append(event)
        return [event for event in found if not kinds or event["event"] in kinds]

    def events_since_submit(self) -> list[Event]:
        """Return the last submission's event and all later ones."""
        events = self.events()
        submits = [number for number, event in enumerate(events) if event["event"] == "submit"]
        return events[submits[-1] :] if submits else events

    def events_of(self, attempt: Attempt, *kinds: str) -> list[Event]:
        """Return the events of one attempt."""
        return [e for e in self.events(*kinds) if (e.get("job"), e.get("restart")) == (attempt.job_id, attempt.restart)]

    def record_failure(self, attempt: Attempt, failure: Failure) -> None:
        """Save how a rank failed. Every rank has its own file, so that ranks that fail together do not mix lines."""
        self.failures_folder.mkdir(exist_ok=True)
        write_atomically(self.failures_folder / f"{attempt}.{failure.rank}.json", json.dumps(asdict(failure)).encode())

    def failures(self, attempt: Attempt) -> list[Failure]:
        """Return the failures of one attempt, the likeliest cause first.

        Those with a message or a signal come first, then the earliest: a rank that lost its peer often has neither.
        """
        found = [Failure(**parse_json(file.read_text())) for file in self.failures_folder.glob(f"{attempt}.*.json")]
        return sorted(found, key=lambda failure: (not failure.message and failure.code >= 0, failure.time))

    def claim(self, attempt: Attempt) -> None:
        """Make this attempt the owner of the job; ranks of any other attempt end as soon as they see it."""
        write_atomically(self.owner_file, json.dumps(asdict(attempt)).encode())

    def owner(self) -> Attempt | None:
        """Return the attempt that owns the job, or None before the first start."""
        try:
            return Attempt(**parse_json(self.owner_file.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def heartbeat(self) -> None:
        """Record that the job is alive now."""
        self.alive_file.touch()

    def seconds_since_heartbeat(self) -> float | None:
        """Return the seconds since the last heartbeat; None if there never was one."""
        try:
            return max(0.0, time.time() - self.alive_file.stat().st_mtime)
        except OSError:
            return None
