"""What a job leaves word of in its folder: starts, ends, failures, who owns it, and a sign of life.

Everything that a person or the next start needs to know can be read here without asking SLURM.
"""

import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from data.atomic_io import write_atomically


@dataclass(frozen=True)
class Attempt:
    """One start of a job: its id, and how often SLURM had started it before."""

    job_id: str
    restart: int

    def __str__(self) -> str:
        return f"{self.job_id}.{self.restart}"


@dataclass(frozen=True)
class Failure:
    """How one rank of an attempt ended that should not have."""

    time: float  # seconds since 1970
    rank: int
    node: str
    code: int  # exit code; negative: the signal that killed it
    message: str  # its last words, empty if it had none

    def __str__(self) -> str:
        if self.message:
            reason = self.message
        elif self.code == -9:
            reason = "killed by signal 9, often for want of memory"
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

    def log(self, event: str, attempt: Attempt | None = None, **values) -> None:
        """Append one event."""
        where = {"job": attempt.job_id, "restart": attempt.restart} if attempt else {}
        with self.events_file.open("a") as file:
            file.write(json.dumps({"event": event, "time": round(time.time(), 3), **where, **values}) + "\n")

    def events(self, *kinds: str) -> list[dict]:
        """All events, or those of some kinds, oldest first; a line torn by a kill is left out."""
        found = []
        for line in self.events_file.read_text().splitlines() if self.events_file.is_file() else ():
            try:
                found.append(json.loads(line))
            except ValueError:
                continue
        return [event for event in found if not kinds or event["event"] in kinds]

    def of(self, attempt: Attempt, *kinds: str) -> list[dict]:
        """Events of one attempt."""
        return [e for e in self.events(*kinds) if (e.get("job"), e.get("restart")) == (attempt.job_id, attempt.restart)]

    def fail(self, attempt: Attempt, failure: Failure) -> None:
        """Record how a rank failed; every rank has a file of its own, so none can spoil another's."""
        self.failures_folder.mkdir(exist_ok=True)
        write_atomically(self.failures_folder / f"{attempt}.{failure.rank}.json", json.dumps(asdict(failure)).encode())

    def failures(self, attempt: Attempt) -> list[Failure]:
        """Failures of one attempt: those with a message first, then by time."""
        found = [Failure(**json.loads(file.read_text())) for file in self.failures_folder.glob(f"{attempt}.*.json")]
        return sorted(found, key=lambda failure: (not failure.message and failure.code >= 0, failure.time))

    def claim(self, attempt: Attempt) -> None:
        """Make this attempt the one that may write; any other one's tasks end when they see it."""
        write_atomically(self.owner_file, json.dumps(asdict(attempt)).encode())

    def owner(self) -> Attempt | None:
        try:
            return Attempt(**json.loads(self.owner_file.read_text()))
        except (OSError, ValueError, TypeError):
            return None

    def heartbeat(self) -> None:
        self.alive_file.touch()

    def seconds_since_heartbeat(self) -> float | None:
        """Time since the last sign of life; None if there never was one."""
        try:
            return max(0.0, time.time() - self.alive_file.stat().st_mtime)
        except OSError:
            return None
