"""Decides at the end of a batch script whether the job starts again.

    python -m slurm.verdict FOLDER JOB RESTART CODE SIGNAL INFO < NODES

runs in the batch script after every rank has ended, so that exactly one process decides. It prints
``requeue:NODES TO EXCLUDE`` or ``end:EXIT CODE``. The script then runs SLURM's commands itself, because they may be
missing in the container that Python runs in.

A job that was told to stop, or that failed, starts again until `retries` + 1 consecutive starts have added no entry to
its progress folder. A program that ends with `USER_ERROR` would fail again and is not restarted.
"""

import json
import re
import sys
from dataclasses import dataclass
from pathlib import Path

from slurm.job import BAD_NODE, FINISHED, USER_ERROR, Job, Resources
from slurm.ledger import Attempt, Failure, Ledger
from slurm.log_lines import last_error_line
from slurm.node_names import node_names
from slurm.partitions import gpus_of

# What srun prints about a rank that ended badly or could not be started.
_ENDED_TASK = re.compile(r"srun: error: (\S+): tasks? [\d,-]+: Exited with exit code (\d+)")
_FAILED_LAUNCH = re.compile(r"srun: error: Task launch for .* failed on node (\S+): (.+)")
_NO_COMMAND = (126, 127)  # a shell's codes for a command that is not executable or not found


@dataclass(frozen=True)
class Verdict:
    """A decision about the next start.

    Attributes:
        code: exit code of the job if it is not requeued.
        exclude: nodes that the next start must not use.
    """

    requeue: bool
    code: int
    reason: str
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class NodePool:
    """The nodes that the job could run on, and how many it needs."""

    names: frozenset[str]
    needed: int


def decide_requeue(
    ledger: Ledger,
    attempt: Attempt,
    code: int,
    progress: str,
    retries: int,
    broken: dict[str, str] | None = None,
    pool: NodePool | None = None,
    no_record: str = "",
) -> Verdict:
    """Decide whether a job starts again, log the decision, and return it.

    Args:
        code: the highest exit code of the ranks, as srun returns it.
        progress: the newest entry of the job's progress folder now.
        broken: nodes on which no rank could start, each with the reason.
        pool: the nodes that the job could use, if known; a job is not requeued if too few would remain.
        no_record: why an attempt without any record may have ended.
    """
    failures, broken = ledger.failures(attempt), broken or {}
    refused = [failure for failure in failures if failure.code == USER_ERROR]
    started = ledger.events_of(attempt, "start")
    gained = bool(started) and progress != started[-1]["progress"]
    wasted = 0 if gained else 1 + _wasted_before(ledger)
    again = wasted <= retries
    given_up = f"given up: {wasted} starts in a row ended without a new checkpoint, and {retries} retries are allowed"
    if not failures and ledger.events_of(attempt, "finished"):
        verdict = Verdict(False, FINISHED, "finished")
    elif refused:
        verdict = Verdict(False, USER_ERROR, str(refused[0]))
    elif failures or broken or not ledger.events_of(attempt, "stopped"):
        reason = _why_failed(failures, broken, no_record or f"a task ended with exit code {code} and left no record")
        bad = {failure.node for failure in failures if failure.code == BAD_NODE and failure.message} | set(broken)
        verdict = Verdict(again, code or 1, reason if again else f"{reason}; {given_up}", tuple(sorted(bad)))
    else:
        verdict = Verdict(again, 1, "told to stop" if again else given_up)
    if verdict.requeue and verdict.exclude and pool:
        verdict = _refuse_too_few(verdict, excluded_by(ledger) | set(verdict.exclude), pool)
    log_verdict(ledger, attempt, verdict, gained)
    return verdict


def log_verdict(ledger: Ledger, attempt: Attempt, verdict: Verdict, gained: bool = False) -> None:
    """Append a decision to the ledger."""
    ledger.log(
        "verdict", attempt, requeue=verdict.requeue, reason=verdict.reason, gained=gained, exclude=verdict.exclude
    )


def excluded_by(ledger: Ledger) -> set[str]:
    """Return the nodes that the job's starts have excluded because they could not be used."""
    return {node for event in ledger.events("verdict") for node in event["exclude"]}


def newest_entry(folder: Path) -> str:
    """Return the name of the last entry of a folder, hidden ones left out; empty if there is none."""
    return max((path.name for path in folder.glob("[!.]*")), default="")


def write_jobs(folder: Path, jobs: list[Job], retries: int, exclude: str | None, resources: Resources) -> None:
    """Save the jobs that are submitted together, and how to requeue them, in `folder` for `main`."""
    content = {
        "jobs": [job.model_dump(mode="json") for job in jobs],
        "retries": retries,
        "exclude": exclude,
        "resources": resources.model_dump(mode="json"),
    }
    (folder / "jobs.json").write_text(json.dumps(content, indent=1))
    # Through these links the batch script finds the records of an array's task if Python does not run.
    if len(jobs) > 1:
        (folder / "records").mkdir(exist_ok=True)
        for number, job in enumerate(jobs):
            link = folder / "records" / str(number)
            link.unlink(missing_ok=True)
            link.symlink_to(job.folder)


def broken_nodes(messages: str, job_nodes: int, failures: list[Failure]) -> dict[str, str]:
    """Return the nodes on which no rank could start, each with the reason, from what srun printed.

    A rank that could run our code has recorded its failure. If only some nodes have ranks that ended without a record,
    those nodes are at fault. If all have, the environment is at fault, and no node is named.
    """
    recorded = {failure.node for failure in failures}
    codes = {node: int(code) for node, code in _ENDED_TASK.findall(messages) if node not in recorded}
    found = {
        node: f"node {node} cannot run the job's Python (exit code {code})"
        for node, code in codes.items()
        if code in _NO_COMMAND or len(codes) < job_nodes
    }
    for node, reason in _FAILED_LAUNCH.findall(messages):
        found[node] = f"node {node} cannot start a task ({reason.strip()})"
    return found


def main(folder: Path, job_id: str, restart: int, code: int, signal: str, info: str, nodes: list[str]) -> str:
    """Decide whether the job that ends starts again; return the answer for the batch script.

    Args:
        folder: of the submission.
        signal: name of the signal that the batch script got, or empty.
        info: what ``scontrol show job --oneliner`` prints; empty if SLURM did not answer.
        nodes: the nodes of the partition, as ``NAME|GRES``.
    """
    submitted = json.loads((folder / "jobs.json").read_text())
    array_task = job_id.partition("_")[2]
    job = Job.model_validate(submitted["jobs"][int(array_task or 0)])
    resources = Resources.model_validate(submitted["resources"])
    attempt, ledger = Attempt(job_id, restart), Ledger(job.folder)
    if _is_newer(ledger.owner(), attempt):
        return "end:1"  # another start owns the job now, and decides at its own end
    if int(_field(info, "Restarts") or 0) > restart:
        ledger.log("requeued", attempt, reason="SLURM requeued the job: preemption, a lost node, or scontrol requeue")
        return "end:1"
    # A job that scancel ends is COMPLETING too, and SLURM would still accept a requeue.
    if _field(info, "JobState") in ("COMPLETING", "CANCELLED") and _field(info, "Reason") != "TimeLimit":
        verdict = Verdict(False, 1, "cancelled")
        if ledger.events_of(attempt, "finished"):
            verdict = Verdict(False, FINISHED, "finished")
        log_verdict(ledger, attempt, verdict)
        return f"end:{verdict.code}"
    messages = (folder / f"{job_id}.srun").read_text(errors="replace") if (folder / f"{job_id}.srun").is_file() else ""
    broken = broken_nodes(messages, int(_field(info, "NumNodes").partition("-")[0] or 1), ledger.failures(attempt))
    error = last_error_line(folder / f"{job_id}_0_log.out")
    where = (
        "the ranks" if messages or ledger.events_of(attempt, "start") else "the batch script, before any rank started,"
    )
    no_record = f"{where} ended with exit code {code}{f' after SIG{signal}' if signal else ''} and left no record"
    verdict = decide_requeue(
        ledger,
        attempt,
        code,
        newest_entry(job.progress),
        submitted["retries"],
        broken,
        _pool(nodes, submitted["exclude"], resources),
        f"{no_record}{f': {error}' if error else ''}",
    )
    print(f"{'requeued' if verdict.requeue else 'ended'}: {verdict.reason}", file=sys.stderr)
    if not verdict.requeue:
        return f"end:{verdict.code}"
    bad = sorted(excluded_by(ledger)) if verdict.exclude else []
    return "requeue:" + (",".join([submitted["exclude"] or "", *bad]).strip(",") if bad else "")


def _why_failed(failures: list[Failure], broken: dict[str, str], no_record: str) -> str:
    # A node that cannot start a rank is the cause, and the failures of the other nodes' ranks are its effects.
    return next(iter(broken.values()), str(failures[0]) if failures else no_record)


def _refuse_too_few(verdict: Verdict, excluded: set[str], pool: NodePool) -> Verdict:
    left = len(pool.names - excluded)
    if left >= pool.needed:
        return verdict
    names = ", ".join(sorted(excluded))
    reason = (
        f"{verdict.reason}; without {names} the partition has {left} nodes and the job needs {pool.needed}: "
        f"have the node repaired, or submit with fewer --nodes"
    )
    return Verdict(False, verdict.code, reason, verdict.exclude)


def _wasted_before(ledger: Ledger) -> int:
    """Return how many of the latest starts in a row ended without progress."""
    count = 0
    for event in reversed(ledger.events("verdict", "submit")):
        if event["event"] == "submit" or event["gained"]:
            break
        count += 1
    return count


def _is_newer(owner: Attempt | None, attempt: Attempt) -> bool:
    """Return whether a later attempt owns the job. An earlier owner means that no rank of this one came to claim it."""
    if owner is None:
        return False
    numbers = [(int(one.job_id.partition("_")[0]), one.restart) for one in (owner, attempt)]
    return numbers[0] > numbers[1]


def _pool(lines: list[str], exclude: str | None, resources: Resources) -> NodePool | None:
    names = set()
    for line in lines:
        name, _, gres = line.strip().partition("|")
        gpus = gpus_of(gres)
        if (gpus.get(resources.gpu_type, 0) if resources.gpu_type else sum(gpus.values())) >= resources.gpus_per_node:
            names.add(name)
    left = names - set(node_names(exclude))
    return NodePool(frozenset(left), resources.min_nodes) if names else None


def _field(info: str, name: str) -> str:
    match = re.search(rf"(?:^| ){name}=(\S*)", info)
    return match[1] if match else ""


if __name__ == "__main__":
    _folder, _job_id, _restart, _code, _signal, _info = sys.argv[1:]
    print(main(Path(_folder), _job_id, int(_restart), int(_code), _signal, _info, sys.stdin.read().splitlines()))
