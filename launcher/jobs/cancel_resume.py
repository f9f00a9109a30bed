"""`bigbatch cancel` and `bigbatch resume`: end a submitted run, and submit it again."""

import shlex
from pathlib import Path

import launcher
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError
from slurm.cluster import load_cluster
from slurm.job import Job, Submission
from slurm.ledger import Ledger
from slurm.snapshot import can_be_started, is_complete, snapshot
from slurm.state import NO_ANSWER, JobState, job_states
from slurm.submit import CODE, cancel_job, last_submission, release_job, submit_jobs


def cancel_run(run: Path) -> None:
    """End a run's job, whether it waits or runs.

    Raises:
        UserError: the run was not submitted, its job has ended, or SLURM refuses or does not answer.
    """
    job_folder = run.absolute() / "job"
    submission = _submission_of(run)
    state = _state_of(job_folder, run)
    if not state.is_active:
        raise UserError(f"{run} has nothing to cancel: its job {submission.job_id} is {state.name}")
    cancel_job(submission)
    Ledger(job_folder).log("cancel")  # after SLURM has agreed: a cancel that failed must not look like one
    print(f"cancelled job {submission.job_id}; continue the run with: bigbatch resume {shlex.quote(str(run))}")


def resume_run(run: Path) -> None:
    """Submit a run again with the code and recipe it was submitted with; a job that is held is released instead.

    Raises:
        UserError: the run was not submitted, its job is in the queue, it is finished, its code is gone, or the
            weights that it starts from do not exist yet.
    """
    job_folder = run.absolute() / "job"
    last = _submission_of(run)
    state = _state_of(job_folder, run)
    if state.is_held:
        release_job(last)
        print(f"released job {last.job_id}, which was held in the queue ({state.note.partition(':')[0]}): {run}")
        return
    if state.is_active:
        raise UserError(f"{run} is in the queue already: its job {last.job_id} is {state.name}")
    if Ledger(job_folder).events("finished"):
        raise UserError(f"{run} is finished: there is nothing to resume")
    name, cluster = load_cluster(last.cluster)
    after = _job_to_wait_for(job_folder)
    _provide_code(last.folder / CODE, job_folder / CODE)
    job = Job.model_validate_json((job_folder / "job.json").read_text())
    submission = submit_jobs([job], last.resources, name, cluster, job_folder, after)[0]
    after_it = f", after job {after}" if after else ""
    print(f"submitted {job.name} again as job {submission.job_id}{after_it}: {run}")


def _job_to_wait_for(job_folder: Path) -> str | None:
    """Return the id of the job that still has to make the weights the run starts from; None if they exist.

    Raises:
        UserError: they do not exist, and no job in the queue is going to make them.
    """
    weights = RunDirectory(job_folder).recipe().model.weights_path
    if weights is None or weights.exists():
        return None
    before = weights.parent
    state = job_states([before / "job"]).get(before / "job")
    if state and state.is_active:
        return state.job_id
    made_by = f": `bigbatch resume {shlex.quote(str(before))}` makes them" if state else ""
    raise UserError(f"the weights that this run starts from are missing, {weights}{made_by}")


def _provide_code(submitted: Path, destination: Path) -> None:
    """Make sure that the job's folder holds the code the run was submitted with.

    Code of a version whose batch scripts worked otherwise is replaced by this version's.
    """
    if not is_complete(submitted):
        raise UserError(
            f"the code that the run was submitted with is gone, {submitted}: "
            f"submit the recipe again with the same --run-dir, and the run continues with the code of today"
        )
    tops = {module.partition(".")[0] for module in RunDirectory(destination.parent).recipe().code.modules}
    user_code = [path for path in submitted.iterdir() if path.stem in tops]
    if not can_be_started(submitted):
        print(f"the code of an earlier version in {submitted} is replaced by that of today")
        snapshot(Path(launcher.__file__).parents[1], destination, user_code)
    elif submitted != destination:  # a run of a sweep is resumed alone, so it needs its own copy
        snapshot(submitted, destination, user_code)


def _state_of(job_folder: Path, run: Path) -> JobState:
    """Return the state of a job; refuse where SLURM does not answer, because a second job could be submitted."""
    state = job_states([job_folder])[job_folder]
    if state.name == NO_ANSWER:
        raise UserError(f"{run} was submitted as job {state.job_id}, which may still be in the queue: {state.note}")
    return state


def _submission_of(run: Path) -> Submission:
    submission = last_submission(run.absolute() / "job")
    if submission is None:
        if RunDirectory(run).recipe_file.is_file():
            raise UserError(
                f"{run} was not submitted: Ctrl-C stops its `bigbatch train`, and the same command resumes it"
            )
        raise UserError(f"{run} was not submitted, so it has no job: `bigbatch submit` makes one")
    return submission
