"""After all ranks have ended: does the job start again?

    python -m slurm.verdict FOLDER CODE

runs at the end of the batch script, where SLURM's commands are (in a container they may not be), after every rank is gone, so
that there is one decision and nobody left to race with. Its exit code is the job's, or `REQUEUE`; it prints the nodes to exclude then.

A job that was told to stop, or that failed, starts again, but not for ever: once `retries` + 1 starts in a row have ended without
leaving anything new in the job's progress folder, it is given up. A program that says that it would fail the same way
again (`USER_ERROR`) is believed.
"""

import json
import os
import sys
from dataclasses import dataclass
from pathlib import Path

from slurm.job import BAD_NODE, FINISHED, USER_ERROR, Job
from slurm.ledger import Attempt, Ledger

REQUEUE = 75  # the batch script hands the job back to the queue


@dataclass(frozen=True)
class Verdict:
    requeue: bool
    code: int  # of the job, if it is not requeued
    reason: str
    exclude: tuple[str, ...] = ()  # nodes that the next start must do without


def decide_requeue(ledger: Ledger, attempt: Attempt, code: int, progress: str, retries: int) -> Verdict:
    """Decide, and write it to the ledger.

    Args:
        code: the highest exit code of the ranks, as srun returns it.
        progress: newest entry of the job's progress folder now.
    """
    failures = ledger.failures(attempt)
    refused = [failure for failure in failures if failure.code == USER_ERROR]
    started = ledger.of(attempt, "start")
    gained = bool(started) and progress != started[-1]["progress"]
    fruitless = 0 if gained else 1 + _fruitless_before(ledger)
    again = fruitless <= retries
    given_up = (
        f"given up: {fruitless} starts in a row ended without a new checkpoint, and {retries} retries are allowed"
    )
    if not failures and ledger.of(attempt, "finished"):
        verdict = Verdict(False, FINISHED, "finished")
    elif refused:
        verdict = Verdict(False, USER_ERROR, str(refused[0]))
    elif failures or not ledger.of(attempt, "stopped"):
        what = str(failures[0]) if failures else f"a task ended with exit code {code} and left no word"
        bad = sorted({failure.node for failure in failures if failure.code == BAD_NODE and failure.message})
        verdict = Verdict(again, code or 1, what if again else f"{what}; {given_up}", tuple(bad))
    else:
        verdict = Verdict(again, 1, "told to stop" if again else given_up)
    ledger.log(
        "verdict", attempt, requeue=verdict.requeue, reason=verdict.reason, gained=gained, exclude=verdict.exclude
    )
    return verdict


def newest_entry(folder: Path) -> str:
    """Name of the last entry of a folder, hidden ones left out; empty if there is none."""
    return max((path.name for path in folder.glob("[!.]*")), default="")


def write_jobs(folder: Path, jobs: list[Job], retries: int, exclude: str | None) -> None:
    """Put down for `main` what was submitted together from a folder."""
    content = {"jobs": [job.model_dump(mode="json") for job in jobs], "retries": retries, "exclude": exclude}
    (folder / "jobs.json").write_text(json.dumps(content, indent=1))


def _fruitless_before(ledger: Ledger) -> int:
    count = 0
    for event in reversed(ledger.events("verdict", "submit")):
        if event["event"] == "submit" or event["gained"]:
            break
        count += 1
    return count


def main(folder: str, code: str) -> int:
    submitted = json.loads((Path(folder) / "jobs.json").read_text())
    number, array = os.environ.get("SLURM_ARRAY_TASK_ID"), os.environ.get("SLURM_ARRAY_JOB_ID")
    job_id = f"{array}_{number}" if array else os.environ["SLURM_JOB_ID"]
    attempt = Attempt(job_id, int(os.environ.get("SLURM_RESTART_COUNT", 0)))
    job = Job.model_validate(submitted["jobs"][int(number or 0)])
    ledger = Ledger(job.folder)
    if ledger.owner() not in (None, attempt):
        return 1  # another start goes on with this job
    verdict = decide_requeue(ledger, attempt, int(code), newest_entry(job.progress), submitted["retries"])
    print(f"{'requeued' if verdict.requeue else 'ended'}: {verdict.reason}", file=sys.stderr)
    if verdict.requeue and verdict.exclude:
        bad = {node for event in ledger.events("verdict") for node in event["exclude"]}
        print(",".join([submitted["exclude"] or "", *sorted(bad)]).strip(","))
    return REQUEUE if verdict.requeue else verdict.code


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
