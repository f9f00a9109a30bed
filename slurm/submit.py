"""Submits a job or an array of jobs through submitit, to SLURM or to this machine; cancels jobs.

A job runs in the folder of its code, so that `python -m` finds that copy before anything installed. No path is written
into the script, where SLURM or the shell could misread it: the job gets paths from its working directory and from
submitit's pickle.
"""

import contextlib
import io
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import submitit
from submitit.core.core import Job as SubmittedJob
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError, JobPaths
from submitit.slurm.slurm import SlurmJob

from recipes.errors import UserError
from slurm.batch_script import batch_script, save_seconds
from slurm.cluster import LOCAL, Cluster
from slurm.commands import clean_environment, reason_of
from slurm.job import Job, Resources, Submission
from slurm.ledger import Ledger
from slurm.rank_supervisor import RankTask
from slurm.verdict import write_jobs

CODE = "code"  # the snapshot, in the folder of a submission; its jobs work there
_SUBMISSION = "submission.json"
_NO_LIMIT = 60 * 24 * 365  # minutes; submitit's local executor needs a limit
_SAVE_MARGIN = 10.0  # seconds between the end of the program's grace and the time limit


def submit_jobs(
    jobs: list[Job],
    resources: Resources,
    cluster_name: str,
    cluster: Cluster,
    folder: Path,
    after: str | None = None,
    at_once: int | None = None,
) -> list[Submission]:
    """Submit one job, or several as an array, and save beside each job's records where it was submitted.

    Args:
        folder: of the submission; holds `CODE` and receives script and logs.
        after: id of a job that must succeed first.
        at_once: how many jobs of an array may run at the same time; None: all.

    Raises:
        UserError: SLURM refuses the job; gives its reason.
    """
    write_jobs(folder, jobs, cluster.retries, cluster.exclude, resources)
    grace = max(5.0, save_seconds(resources, cluster) - _SAVE_MARGIN)
    tasks = [RankTask(job, grace, cluster.retries, resources.tasks_per_node) for job in jobs]
    now = time.time()
    ledgers = [Ledger(job.folder) for job in jobs]
    for ledger in ledgers:  # before the submission, because the job may start at once and log that
        ledger.log("submit")
    try:
        if cluster_name == LOCAL:
            ids = _submit_locally(tasks, resources, cluster, folder)
        else:
            name = plain_word(jobs[0].name)
            ids = _submit_to_slurm(
                tasks, batch_script(resources, cluster, name, len(jobs), after, at_once), cluster, folder
            )
    except UserError:
        for ledger in ledgers:
            ledger.take_back("submit")
        raise
    host = socket.gethostname() if cluster_name == LOCAL else None
    submissions = []
    for job, job_id in zip(jobs, ids):
        submission = Submission(
            job_id=job_id,
            cluster=cluster_name,
            submitted=now,
            resources=resources,
            folder=folder,
            host=host,
            after=after,
        )
        (job.folder / _SUBMISSION).write_text(submission.model_dump_json(indent=1))
        submissions.append(submission)
    return submissions


def check_path(folder: Path) -> None:
    """Check that SLURM would not change the name of a submission's folder.

    Raises:
        UserError: the name contains a %.
    """
    if "%" in str(folder):
        raise UserError(f"SLURM replaces what follows a % in a path: choose a run directory other than {folder.parent}")


def check_slurm_is_here() -> None:
    """Check that SLURM is installed on this machine.

    Raises:
        UserError: its commands are not installed here.
    """
    if not submitit.SlurmExecutor.affinity() > 0:
        raise UserError(
            "SLURM's commands (sbatch, srun) are not installed here: submit from a login node, or use --cluster local"
        )


def last_submission(job_folder: Path) -> Submission | None:
    """Return where the job with its records in that folder was last submitted; None if it never was."""
    try:
        return Submission.model_validate_json((job_folder / _SUBMISSION).read_text())
    except (OSError, ValueError):
        return None


def cancel_job(submission: Submission) -> None:
    """End a job, whether it waits or runs; it will not start again.

    Raises:
        UserError: SLURM refuses, or the job runs on another machine.
    """
    if submission.cluster == LOCAL:
        if submission.host != socket.gethostname():
            raise UserError(f"job {submission.job_id} runs on {submission.host}: cancel it there")
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(submission.job_id), 15)
        return
    _change("cancel", ["scancel", submission.job_id])


def release_job(submission: Submission) -> None:
    """Let a job start that SLURM or its user holds in the queue.

    Raises:
        UserError: SLURM refuses, e.g. because an administrator holds the job.
    """
    _change("release", ["scontrol", "release", submission.job_id])


def _change(what: str, command: list[str]) -> None:
    """Run a command of SLURM that changes the job named in its last word."""
    job_id = command[-1]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean_environment())
    except subprocess.TimeoutExpired:
        raise UserError(f"SLURM did not answer, so job {job_id} may be as it was: try again") from None
    if done.returncode:
        raise UserError(f"SLURM cannot {what} job {job_id}: {reason_of(done.stderr)}")


def is_local_controller(job_id: str) -> bool:
    """Return whether the process with that id is submitit's controller, which lives as long as its job."""
    try:
        return b"submitit.local" in Path(f"/proc/{job_id}/cmdline").read_bytes()
    except OSError:
        return False


def plain_word(name: str) -> str:
    """Return a name in characters that have no meaning to shells, scripts and file systems."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._=+-") else "_" for c in name) or "_"


def _submit_locally(tasks: list[RankTask], resources: Resources, cluster: Cluster, folder: Path) -> list[str]:
    executor = submitit.LocalExecutor(folder, python=cluster.python)
    executor.update_parameters(
        timeout_min=resources.minutes or _NO_LIMIT,
        gpus_per_node=resources.gpus_per_node,
        tasks_per_node=resources.tasks_per_node,
        signal_delay_s=save_seconds(resources, cluster),
        stderr_to_stdout=True,
    )
    with contextlib.chdir(folder / CODE), _environment({**os.environ, **cluster.environment}), _detached_output():
        submitted = executor.submit_array(tasks)
    _wait_until_visible(submitted[0].job_id)
    return [job.job_id for job in submitted]


def _submit_to_slurm(tasks: list[RankTask], script: str, cluster: Cluster, folder: Path) -> list[str]:
    check_slurm_is_here()
    executor = _ScriptExecutor(folder, script, cluster.python)
    # submitit prints on stderr what sbatch says; the reason of a refusal is in its exception.
    with (
        contextlib.chdir(folder / CODE),
        _environment(clean_environment()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        try:
            submitted = executor.submit_array(tasks)
        except (FailedJobError, FailedSubmissionError) as error:
            reason = reason_of(str(error)) or "it does not say why"
            raise UserError(f"SLURM refuses the job: {reason}") from None
    return [job.job_id for job in submitted]


class _ScriptExecutor(submitit.SlurmExecutor):
    """submitit's executor with a script of our own."""

    def __init__(self, folder: Path, script: str, python: str | None):
        super().__init__(folder, python=python)
        self._script = script

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return self._script

    def _internal_process_submissions(self, delayed_submissions: list[DelayedSubmission]) -> list[SubmittedJob[Any]]:
        """Submit arrays too with this executor; submitit's own method would make another one, without the script."""
        if len(delayed_submissions) == 1:
            return super()._internal_process_submissions(delayed_submissions)
        pickles = []
        for number, delayed in enumerate(delayed_submissions):
            pickles.append(self.folder / f"{number}.pkl")
            delayed.dump(pickles[-1])
        first: SubmittedJob[Any] = self._submit_command(self._submitit_command_str)
        jobs: list[SubmittedJob[Any]] = [
            SlurmJob(self.folder, f"{first.job_id}_{number}") for number in range(len(pickles))
        ]
        for job, pickled in zip(jobs, pickles):
            JobPaths(self.folder, job.job_id).move_temporary_file(pickled, "submitted_pickle")
        return jobs


def _wait_until_visible(job_id: str) -> None:
    """Wait until a new process has its own command line, by which `is_local_controller` knows it."""
    deadline = time.monotonic() + 10
    while not is_local_controller(job_id) and time.monotonic() < deadline:
        time.sleep(0.02)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    """Replace the environment inside the block: submitit has no parameter for the environment of sbatch."""
    before = dict(os.environ)
    os.environ.clear()
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _detached_output() -> Iterator[None]:
    """Discard stdout and stderr inside the block.

    submitit's local controller inherits them, and would keep a caller's pipe open for as long as the job runs.
    """
    sys.stdout.flush()
    kept, nothing = [os.dup(1), os.dup(2)], os.open(os.devnull, os.O_WRONLY)
    for number in (1, 2):
        os.dup2(nothing, number)
    try:
        yield
    finally:
        for number, descriptor in zip((1, 2), kept):
            os.dup2(descriptor, number)
            os.close(descriptor)
        os.close(nothing)
