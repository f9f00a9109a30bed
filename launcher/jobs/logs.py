"""`bigbatch logs`: prints what a submitted run printed, the first failure on top."""

import sys
import time
from pathlib import Path

from recipes.errors import UserError
from slurm.ledger import Attempt, Ledger
from slurm.state import NO_ANSWER, job_states
from slurm.submit import last_submission

_READ_INTERVAL = 0.5  # seconds between looks at the log file
_STATE_INTERVAL = 15.0  # seconds between questions to SLURM, whose controller answers all users of a cluster


def print_log(run: Path, rank: int, follow: bool) -> None:
    """Print the log of one rank of a run's job over all its starts; with `follow`, until the job ends.

    Raises:
        UserError: the run was never submitted, or the rank has no log yet.
    """
    job_folder = run / "job"
    submission = last_submission(job_folder)
    if submission is None:
        raise UserError(f"{run} was not submitted, so it has no log: `bigbatch train` prints to the terminal only")
    _print_first_failure(Ledger(job_folder))
    log = submission.folder / f"{submission.job_id}_{rank}_log.out"
    if not log.exists() and not follow:
        others = sorted(submission.folder.glob(f"{submission.job_id}_*_log.out"))
        if others:
            raise UserError(f"rank {rank} has no log; there are logs of ranks 0 to {len(others) - 1}")
        state = job_states([job_folder])[job_folder]
        raise UserError(
            f"job {submission.job_id} has printed nothing yet ({state.name}{f', {state.note}' if state.note else ''})"
        )
    position, asked, announced = 0, -_STATE_INTERVAL, ""
    while True:
        if follow and time.monotonic() - asked >= _STATE_INTERVAL:
            state, asked = job_states([job_folder])[job_folder], time.monotonic()
            follow = state.is_active or state.name == NO_ANSWER
            waits_for = f"job {state.job_id} is {state.name}{f' ({state.note})' if state.note else ''}"
            if follow and waits_for != announced and state.name != "RUNNING":
                print(f"{waits_for}: waiting for it to print", file=sys.stderr, flush=True)
                announced = waits_for
        position = _print_from(log, position)
        if not follow:
            return
        time.sleep(_READ_INTERVAL)


def _print_first_failure(ledger: Ledger) -> None:
    starts = ledger.events("start")
    if starts:
        failures = ledger.failures(Attempt(starts[-1]["job"], starts[-1]["restart"]))
        if failures:
            print(f"first failure: {failures[0]}\n")


def _print_from(log: Path, position: int) -> int:
    """Print the log from a position in bytes on; return the position of its end."""
    if log.exists():
        with log.open("rb") as file:
            file.seek(position)
            while block := file.read(1 << 20):
                sys.stdout.write(block.decode(errors="replace"))
            position = file.tell()
        sys.stdout.flush()
    return position
