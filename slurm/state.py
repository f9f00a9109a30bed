"""What has become of a job: from SLURM's queue, its accounting where there is one, and the job's own records.

SLURM forgets a job minutes after its end unless it keeps accounts, and believes in a running job longer than it should. The
ledger knows how a start ended and when it last gave a sign of life.
"""

import os
import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from slurm.cluster import LOCAL
from slurm.ledger import Ledger
from slurm.submit import is_local_controller, last_submission

_ENDED = {
    "COMPLETED",
    "FAILED",
    "CANCELLED",
    "TIMEOUT",
    "NODE_FAIL",
    "OUT_OF_MEMORY",
    "BOOT_FAIL",
    "DEADLINE",
    "PREEMPTED",
}
_ENDED |= {"LOST", "STOPPED", "UNREADABLE"}  # words of our own
_SILENT = 120.0  # seconds without a sign of life after which a running job is in doubt


@dataclass(frozen=True)
class JobState:
    """A job's state in SLURM's words (or LOST: nobody knows it any more and it left no end), and a note for people."""

    name: str
    job_id: str
    note: str = ""
    nodes: int | None = None

    @property
    def is_active(self) -> bool:
        return self.name not in _ENDED


@dataclass(frozen=True)
class Queued:
    """What SLURM says of a job."""

    state: str
    reason: str
    nodes: int | None


def job_states(folders: list[Path]) -> dict[Path, JobState]:
    """The states of the jobs whose records are in these folders, asked from SLURM at once; those never submitted are left out."""
    submissions = {folder: submission for folder in folders if (submission := last_submission(folder))}
    ids = [submission.job_id for submission in submissions.values() if submission.cluster != LOCAL]
    known = ask_slurm(ids) if ids else {}
    states = {}
    for folder, submission in submissions.items():
        if submission.cluster == LOCAL:
            here = submission.host == socket.gethostname() and is_local_controller(submission.job_id)
            queued = Queued("RUNNING", "", 1) if here else None
        else:
            queued = known.get(submission.job_id)
        states[folder] = resolve_state(Ledger(folder), submission.job_id, queued)
    return states


def resolve_state(ledger: Ledger, job_id: str, queued: Queued | None) -> JobState:
    """Put together what SLURM says (None: it does not know the job) and what the job left word of."""
    starts = [event for event in ledger.events("start") if event["job"] == job_id]
    nodes = len(starts[-1]["nodes"]) if starts else None
    if queued is None:
        return _from_ledger(ledger, job_id, nodes)
    state, note = queued.state, ""
    if state == "PENDING":
        state, note, nodes = "REQUEUED" if starts else "PENDING", queued.reason, None
    elif state == "RUNNING":
        silent = ledger.seconds_since_heartbeat()
        if starts and silent is not None and silent > _SILENT:
            note = f"no sign of life for {silent / 60:.0f} min"
        nodes = queued.nodes or nodes
    elif state not in ("COMPLETED", "COMPLETING"):
        note = why_it_ended(ledger)
    return JobState(state, job_id, note, nodes)


def why_it_ended(ledger: Ledger) -> str:
    """The reason of the last verdict that let a job end; empty if there is none."""
    verdicts = [event for event in ledger.events("verdict") if not event["requeue"]]
    return verdicts[-1]["reason"] if verdicts and verdicts[-1]["reason"] != "finished" else ""


def ask_slurm(ids: list[str]) -> dict[str, Queued]:
    """What the queue, or else the accounting, says of jobs; those that neither knows are left out, as is a SLURM out of reach."""
    parents = sorted({job_id.partition("_")[0] for job_id in ids})
    found = {}
    for line in _lines(
        ["squeue", "--noheader", "--array", "--states=all", f"--jobs={','.join(parents)}", "-o", "%i|%T|%r|%D"]
    ):
        job_id, state, reason, nodes = line.split("|")
        found[job_id] = Queued(state, "" if reason == "None" else reason, int(nodes) if nodes.isdigit() else None)
    missing = sorted({job_id.partition("_")[0] for job_id in ids if job_id not in found})
    if missing:
        for line in _lines(
            ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(missing)}", "-o", "JobID,State"]
        ):
            job_id, _, state = line.partition("|")
            if state:
                found.setdefault(job_id, Queued(state.split()[0], "", None))
    return {job_id: found[job_id] for job_id in ids if job_id in found}


def _from_ledger(ledger: Ledger, job_id: str, nodes: int | None) -> JobState:
    events = ledger.events()
    submits = [number for number, event in enumerate(events) if event["event"] == "submit"]
    since = events[submits[-1] :] if submits else events
    happened = {event["event"] for event in since}
    if "finished" in happened:
        return JobState("COMPLETED", job_id, nodes=nodes)
    if "cancel" in happened:
        return JobState("CANCELLED", job_id, nodes=nodes)
    if since and since[-1]["event"] == "verdict" and not since[-1]["requeue"]:
        return JobState("FAILED", job_id, since[-1]["reason"], nodes)
    silent = ledger.seconds_since_heartbeat()
    seen = "never started" if silent is None else f"last sign of life {silent / 60:.0f} min ago"
    return JobState("LOST", job_id, f"SLURM does not know it any more, {seen}", nodes)


def _lines(command: list[str]) -> list[str]:
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=60, env={**os.environ, "SLURM_TIME_FORMAT": "standard"}
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return done.stdout.splitlines()
