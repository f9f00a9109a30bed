"""`bigbatch logs`: what a submitted run printed, the first failure on top."""

import sys
import time
from pathlib import Path

from recipes.errors import UserError
from slurm.ledger import Attempt, Ledger
from slurm.state import job_states
from slurm.submit import last_submission

_LOOK_EVERY = 0.5  # seconds between looks at the log
_ASK_EVERY = 15.0  # seconds between questions to SLURM, which does not like many


def print_log(run: Path, rank: int, follow: bool) -> None:
    """Print the log of one rank of a run's job over all its starts; go on printing while the job lives if asked to.

    Raises:
        UserError: the run was never submitted, or has no such log yet.
    """
    job_folder = run / "job"
    submission = last_submission(job_folder)
    if submission is None:
        raise UserError(f"{run} was not submitted: `bigbatch train` printed what there was")
    _print_first_failure(Ledger(job_folder))
    log = submission.folder / f"{submission.job_id}_{rank}_log.out"
    if not log.exists() and not follow:
        others = sorted(submission.folder.glob(f"{submission.job_id}_*_log.out"))
        if others:
            raise UserError(f"rank {rank} has no log; there are those of ranks 0 to {len(others) - 1}")
        state = job_states([job_folder])[job_folder]
        raise UserError(
            f"job {submission.job_id} has printed nothing yet ({state.name}{f', {state.note}' if state.note else ''})"
        )
    position, asked = 0, -_ASK_EVERY
    while True:
        if follow and time.monotonic() - asked >= _ASK_EVERY:
            follow, asked = job_states([job_folder])[job_folder].is_active, time.monotonic()
        position = _print_from(log, position)
        if not follow:
            return
        time.sleep(_LOOK_EVERY)


def _print_first_failure(ledger: Ledger) -> None:
    starts = ledger.events("start")
    if starts:
        failures = ledger.failures(Attempt(starts[-1]["job"], starts[-1]["restart"]))
        if failures:
            print(f"first failure: {failures[0]}\n")


def _print_from(log: Path, position: int) -> int:
    if log.exists():
        with log.open("rb") as file:
            file.seek(position)
            while block := file.read(1 << 20):
                sys.stdout.write(block.decode(errors="replace"))
            position = file.tell()
        sys.stdout.flush()
    return position
