"""The state of a job: from SLURM's queue, from its accounting if there is any, and from the job's own records.

SLURM forgets a job minutes after its end unless it keeps accounting, and may list a job as running long after its
node died. The ledger knows how a start ended and when the last heartbeat was.
"""

import socket
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from slurm.cluster import LOCAL
from slurm.commands import SlurmDidNotAnswer, SlurmRefused, ask
from slurm.ledger import Ledger
from slurm.submit import is_local_controller, last_submission
from slurm.verdict import excluded_by

# SLURM's states (squeue(1), JOB STATE CODES) in which a job is over. It is active in every other one, also in those
# that newer versions add: STOPPED, for example, means that a signal has suspended the job, and it still holds its
# nodes.
_SLURM_ENDS = {
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
}
NO_ANSWER = "NO_ANSWER"  # not a state of SLURM, and neither is LOST: SLURM could not be asked
_SILENT = 120.0  # seconds without a heartbeat after which a running job is in doubt


@dataclass(frozen=True)
class JobState:
    """A job's state, and a note for people.

    Attributes:
        name: SLURM's state; or REQUEUED (it waits for another start), LOST (SLURM no longer knows the job and it left
            no record of its end), NO_ANSWER (SLURM could not be asked and the job left no record of its end).
        is_active: whether the job is in the queue, so that no second one may be submitted; False for NO_ANSWER, where
            nobody knows.
        is_held: whether the job stays in the queue until somebody releases it. SLURM itself holds a job that a node
            failed to launch, and nothing of the job runs that could release it.
    """

    name: str
    job_id: str
    note: str = ""
    nodes: int | None = None
    is_active: bool = False
    is_held: bool = False


@dataclass(frozen=True)
class SlurmState:
    """What SLURM says about a job."""

    state: str
    reason: str
    nodes: int | None

    @property
    def is_active(self) -> bool:
        return self.state not in _SLURM_ENDS


def job_states(folders: list[Path]) -> dict[Path, JobState]:
    """Return the states of the jobs with records in these folders; those never submitted are left out.

    SLURM is asked once for all. Where it does not answer, jobs without a recorded end are `NO_ANSWER`.
    """
    submissions = {folder: submission for folder in folders if (submission := last_submission(folder))}
    ids = [submission.job_id for submission in submissions.values() if submission.cluster != LOCAL]
    known: dict[str, SlurmState] = {}
    no_answer = None
    try:
        known = ask_slurm(ids) if ids else {}
    except (SlurmDidNotAnswer, SlurmRefused) as error:
        no_answer = str(error)
    except FileNotFoundError as error:
        no_answer = f"SLURM's command {error.filename} is not installed here: ask on a login node"
    states = {}
    for folder, submission in submissions.items():
        local = submission.cluster == LOCAL
        if local:
            here = submission.host == socket.gethostname() and is_local_controller(submission.job_id)
            said = SlurmState("RUNNING", "", 1) if here else None
        else:
            said = known.get(submission.job_id)
        state = resolve_state(Ledger(folder), submission.job_id, said, submission.after)
        if state.name == "LOST" and no_answer and not local:
            state = JobState(NO_ANSWER, submission.job_id, no_answer, state.nodes)
        states[folder] = state
    return states


def resolve_state(ledger: Ledger, job_id: str, said: SlurmState | None, after: str | None = None) -> JobState:
    """Return a job's state from SLURM's answer and the job's own records.

    Args:
        ledger: the job's records.
        job_id: as in its last submission.
        said: SLURM's answer; None: it does not know the job.
        after: id of the job that had to succeed first.
    """
    starts = [event for event in ledger.events("start") if event["job"] == job_id]
    nodes = len(starts[-1]["nodes"]) if starts else None
    if said is None:
        return _state_from_records(ledger, job_id, nodes)
    name, note = said.state, ""
    # "JobHeldUser", "JobHeldAdmin", "launch failed requeued held", "job requeued in held state"
    is_held = name == "PENDING" and "held" in said.reason.lower()
    if name == "PENDING":
        name, note, nodes = "REQUEUED" if starts else "PENDING", said.reason, None
        if is_held and "requeued" in said.reason:
            note += ": `bigbatch resume` releases it"
        if said.reason == "BadConstraints" and (excluded := excluded_by(ledger)):
            note += f": {', '.join(sorted(excluded))} excluded, and the remaining nodes do not suffice"
    elif name == "RUNNING":
        silent = ledger.seconds_since_heartbeat()
        if starts and silent is not None and silent > _SILENT:
            note = f"no heartbeat for {silent / 60:.0f} min"
        nodes = said.nodes or nodes
    elif name == "CANCELLED" and after and not starts and not any(ledger.events("cancel")):
        note = f"job {after}, which had to succeed first, did not"
    elif name not in ("COMPLETED", "COMPLETING"):
        note = why_it_ended(ledger)
    return JobState(name, job_id, note, nodes, said.is_active, is_held)


def why_it_ended(ledger: Ledger) -> str:
    """Return the reason of the last decision that ended the job; empty if there is none."""
    verdicts = [event for event in ledger.events_since_submit() if event["event"] == "verdict" and not event["requeue"]]
    return str(verdicts[-1]["reason"]) if verdicts and verdicts[-1]["reason"] != "finished" else ""


def ask_slurm(ids: list[str]) -> dict[str, SlurmState]:
    """Return what the queue, or else the accounting, says about jobs; jobs that neither knows are left out.

    Raises:
        SlurmDidNotAnswer, SlurmRefused: nothing is known.
        FileNotFoundError: SLURM's commands are not installed here.
    """
    found = {}
    for line in _queue(_arrays(ids)):
        job_id, state, reason, nodes = line.split("|")
        found[job_id] = SlurmState(state, "" if reason == "None" else reason, int(nodes) if nodes.isdigit() else None)
    missing = _arrays(job_id for job_id in ids if job_id not in found)
    for line in _accounting(missing) if missing else []:
        job_id, _, state = line.partition("|")
        if state:  # "CANCELLED by 1000" has more than one word
            found.setdefault(job_id, SlurmState(state.split()[0], "", None))
    return {job_id: found[job_id] for job_id in ids if job_id in found}


def _arrays(ids: Iterable[str]) -> list[str]:
    return sorted({job_id.partition("_")[0] for job_id in ids})


def _queue(ids: list[str]) -> list[str]:
    command = ["squeue", "--all", "--noheader", "--array", "--states=all", f"--jobs={','.join(ids)}"]
    try:
        output = ask([*command, "-o", "%i|%T|%r|%D"])
    except SlurmRefused as error:
        if "Invalid job id" in str(error):  # the answer for a single job that the queue does not know
            return []
        raise
    return [line for line in output.splitlines() if "|" in line]


def _accounting(ids: list[str]) -> list[str]:
    command = ["sacct", "--noheader", "--parsable2", "--allocations", f"--jobs={','.join(ids)}", "-o", "JobID,State"]
    try:
        return ask(command).splitlines()
    except FileNotFoundError:
        return []
    except SlurmRefused as error:
        if "accounting storage is disabled" in str(error):
            return []
        raise


def _state_from_records(ledger: Ledger, job_id: str, nodes: int | None) -> JobState:
    since = ledger.events_since_submit()
    happened = {event["event"] for event in since}
    if "finished" in happened:
        return JobState("COMPLETED", job_id, nodes=nodes)
    if "cancel" in happened:
        return JobState("CANCELLED", job_id, nodes=nodes)
    if since and since[-1]["event"] == "verdict" and not since[-1]["requeue"]:
        return JobState("FAILED", job_id, since[-1]["reason"], nodes)
    silent = ledger.seconds_since_heartbeat()
    seen = "it never started" if silent is None else f"its last heartbeat was {silent / 60:.0f} min ago"
    return JobState("LOST", job_id, f"SLURM no longer knows it, and {seen}", nodes)
