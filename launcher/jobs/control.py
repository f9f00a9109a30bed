"""`bigbatch cancel` and `bigbatch resume`: ending a submitted run, and going on with it."""

from pathlib import Path

from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError
from slurm.cluster import load_cluster
from slurm.job import Job, Submission
from slurm.ledger import Ledger
from slurm.snapshot import snapshot
from slurm.state import job_states
from slurm.submit import CODE, cancel_job, last_submission, submit_jobs


def cancel_run(run: Path) -> None:
    """End a run's job, whether it waits or runs.

    Raises:
        UserError: it was not submitted, has ended already, or SLURM cannot.
    """
    job_folder = run.absolute() / "job"
    submission = _submission(run)
    state = job_states([job_folder])[job_folder]
    if not state.is_active:
        raise UserError(f"{run} has nothing to cancel: its job {submission.job_id} is {state.name}")
    Ledger(job_folder).log("cancel")
    cancel_job(submission)
    print(f"cancelled job {submission.job_id}; go on with: bigbatch resume {run}")


def resume_run(run: Path) -> None:
    """Submit a run again with the code and recipe it was submitted with.

    Raises:
        UserError: it was not submitted, is in the queue, or is finished.
    """
    job_folder = run.absolute() / "job"
    last = _submission(run)
    state = job_states([job_folder])[job_folder]
    if state.is_active:
        raise UserError(f"{run} is in the queue already: its job {last.job_id} is {state.name}")
    if Ledger(job_folder).events("finished"):
        raise UserError(f"{run} is finished: there is nothing to go on with")
    name, cluster = load_cluster(last.cluster)
    if last.folder != job_folder:  # one run of a sweep goes on alone
        snapshot(last.folder / CODE, job_folder / CODE)
    job = Job.model_validate_json((job_folder / "job.json").read_text())
    submission = submit_jobs([job], last.resources, name, cluster, job_folder)[0]
    print(f"submitted {job.name} again as job {submission.job_id}: {run}")


def _submission(run: Path) -> Submission:
    submission = last_submission(run.absolute() / "job")
    if submission is None:
        if RunDirectory(run).recipe_file.is_file():
            raise UserError(
                f"{run} was not submitted: Ctrl-C stops its `bigbatch train`, and the same command goes on where it stopped"
            )
        raise UserError(f"{run} was not submitted, so there is no job: `bigbatch submit` makes one")
    return submission
