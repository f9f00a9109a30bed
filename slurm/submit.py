"""To the queue, through submitit: a job or an array of jobs, on SLURM or on this machine.

A job works in the folder of its code, so `python -m` finds the snapshot before anything installed, and everything SLURM has to
read is a plain word: paths go as a working directory and through submitit's file, never as text in a script.
"""

import contextlib
import io
import os
import shlex
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import submitit
from submitit.core.utils import DelayedSubmission, FailedJobError, FailedSubmissionError, JobPaths
from submitit.slurm.slurm import SlurmJob, _make_sbatch_string

from recipes.errors import UserError
from slurm.cluster import LOCAL, Cluster
from slurm.job import Job, Resources, Submission
from slurm.ledger import Ledger
from slurm.task import RankTask
from slurm.verdict import REQUEUE, write_jobs

CODE = "code"  # the snapshot, in the folder of a submission; every job works there
_SUBMISSION = "submission.json"
_FOR_EVER = 60 * 24 * 365  # minutes; submitit's local executor wants a limit


def submit_jobs(
    jobs: list[Job], resources: Resources, cluster_name: str, cluster: Cluster, folder: Path, after: str | None = None
) -> list[Submission]:
    """Submit one job, or several as an array, and write beside each job's records where it went.

    Args:
        folder: of the submission; holds `CODE` and takes script and logs.
        after: id of a job that must succeed first.

    Raises:
        UserError: SLURM refuses, with its reason.
    """
    write_jobs(folder, jobs, cluster.retries, cluster.exclude)
    tasks = [
        RankTask(job, grace=max(5.0, save_seconds(resources, cluster) - 10.0), retries=cluster.retries) for job in jobs
    ]
    if cluster_name == LOCAL:
        executor = submitit.LocalExecutor(folder, python=cluster.python)
        executor.update_parameters(
            timeout_min=resources.minutes or _FOR_EVER,
            gpus_per_node=resources.gpus_per_node,
            tasks_per_node=resources.tasks_per_node,
            signal_delay_s=save_seconds(resources, cluster),
            stderr_to_stdout=True,
        )
    else:
        executor = _executor(folder, resources, cluster, jobs[0].name, after)
    now = time.time()
    for job in jobs:
        Ledger(job.folder).log("submit")
    environment = cluster.environment if cluster_name == LOCAL else {}
    with contextlib.chdir(folder / CODE), _variables(environment), _silence(cluster_name == LOCAL):
        try:
            submitted = executor.submit_array(tasks)
        except (FailedJobError, FailedSubmissionError) as error:
            raise UserError(f"SLURM refuses the job: {_reason(str(error))}") from None
    if cluster_name == LOCAL:
        _wait_until_seen(submitted[0].job_id)
    host = socket.gethostname() if cluster_name == LOCAL else None
    submissions = []
    for job, one in zip(jobs, submitted):
        submission = Submission(
            job_id=one.job_id,
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
    """Refuse a folder of a submission whose name SLURM would change.

    Raises:
        UserError: it holds a %.
    """
    if "%" in str(folder):
        raise UserError(f"SLURM replaces what follows a % in a path: choose a run directory other than {folder.parent}")


def script(resources: Resources, cluster: Cluster, name: str, count: int = 1, after: str | None = None) -> str:
    """The batch script that `submit` hands to SLURM for `count` jobs."""
    executor = _executor(Path("/"), resources, cluster, name, after)
    if count > 1:
        executor.parameters["map_count"] = count
    return executor._make_submission_file_text(executor._submitit_command_str, "")


def last_submission(job_folder: Path) -> Submission | None:
    """Where the job with its records in that folder was last submitted; None if it never was."""
    try:
        return Submission.model_validate_json((job_folder / _SUBMISSION).read_text())
    except (OSError, ValueError):
        return None


def cancel_job(submission: Submission) -> None:
    """End a job; running or not, it will not start again.

    Raises:
        UserError: SLURM cannot.
    """
    if submission.cluster == LOCAL:
        if submission.host != socket.gethostname():
            raise UserError(f"job {submission.job_id} runs on {submission.host}: cancel it there")
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(submission.job_id), 15)
        return
    done = subprocess.run(["scancel", submission.job_id], capture_output=True, text=True, timeout=60)
    if done.returncode:
        raise UserError(f"SLURM cannot cancel job {submission.job_id}: {_reason(done.stderr)}")


def is_local_controller(job_id: str) -> bool:
    """Whether the process of that id is submitit's, which lives as long as its job."""
    try:
        return b"submitit.local" in Path(f"/proc/{job_id}/cmdline").read_bytes()
    except OSError:
        return False


def save_seconds(resources: Resources, cluster: Cluster) -> int:
    """How long before the time limit the job is told: the profile's, but never more than a quarter of the limit."""
    return min(cluster.save_seconds, resources.minutes * 15) if resources.minutes else cluster.save_seconds


class _SlurmExecutor(submitit.SlurmExecutor):
    """submitit's, with paths relative to the working directory and its own Python for arrays too."""

    _HERE = "/@"  # stands for the folder while submitit quotes

    @property
    def _submitit_command_str(self) -> str:
        return f"{self.python} -u -m submitit.core._submit .."

    def _make_submission_file_text(self, command: str, uid: str) -> str:
        return _make_sbatch_string(command=command, folder=self._HERE, **self.parameters).replace(self._HERE, "..")

    def _internal_process_submissions(self, delayed_submissions: list[DelayedSubmission]) -> list[SlurmJob]:
        if len(delayed_submissions) == 1:
            return super()._internal_process_submissions(delayed_submissions)
        waiting = []
        for number, delayed in enumerate(delayed_submissions):
            waiting.append(self.folder / f"{number}.pkl")
            delayed.set_timeout(self.parameters.get("time", 5), self.max_num_timeout)
            delayed.dump(waiting[-1])
        self.parameters["map_count"] = len(delayed_submissions)
        first = self._submit_command(self._submitit_command_str)
        jobs = [
            SlurmJob(self.folder, f"{first.job_id}_{number}", range(first.num_tasks)) for number in range(len(waiting))
        ]
        for job, pickled in zip(jobs, waiting):
            JobPaths(self.folder, job.job_id).move_temporary_file(pickled, "submitted_pickle")
        return jobs


def _executor(folder: Path, resources: Resources, cluster: Cluster, name: str, after: str | None) -> _SlurmExecutor:
    if not submitit.SlurmExecutor.affinity() > 0:
        raise UserError(
            "SLURM's commands (sbatch, srun) are not here: submit from a login node, or use --cluster local"
        )
    # Tasks are srun's to count: told of tasks per node, sbatch takes no more nodes than the least of `--nodes 2-8`.
    more = {"nodes": resources.nodes, "mincpus": resources.tasks_per_node * resources.cpus_per_task, "requeue": True}
    more |= {"kill-on-invalid-dep": "yes", **cluster.sbatch}
    asked = {
        "job_name": plain_word(name),
        "partition": resources.partition or cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "time": resources.minutes,
        "nodes": resources.min_nodes,
        "gpus_per_node": resources.gpus_per_node or None,
        "mem": f"{cluster.memory_gb}GB" if cluster.memory_gb else None,
        "dependency": f"afterok:{after}" if after else None,
    }
    executor = _SlurmExecutor(folder, python=cluster.python)
    executor.update_parameters(
        **{key: value for key, value in asked.items() if value is not None},
        # An empty PYTHONSAFEPATH keeps the working directory, and so the snapshot, in front of what is installed.
        setup=[*cluster.setup, *(f"export {key}={shlex.quote(value)}" for key, value in _exported(cluster).items())],
        teardown=_TEARDOWN.format(python=executor.python, requeue=REQUEUE).splitlines(),
        signal_delay_s=save_seconds(resources, cluster),
        stderr_to_stdout=True,
        srun_args=[
            f"--ntasks-per-node={resources.tasks_per_node}",
            f"--cpus-per-task={resources.cpus_per_task}",
            "--kill-on-bad-exit=1",
        ],
        additional_parameters=more,
        wckey=None,
    )
    return executor


_TEARDOWN = """\
code=$?
bad=$({python} -m slurm.verdict .. "$code")
code=$?
if [ "$code" = {requeue} ]; then
  trap "" TERM
  scontrol requeue "$SLURM_JOB_ID" || exit 1
  [ -z "$bad" ] || scontrol update JobId="$SLURM_JOB_ID" ExcNodeList="$bad"
  exit 0
fi
exit "$code"
"""


def plain_word(name: str) -> str:
    """A name in letters that no shell, script or file system minds."""
    return "".join(c if c.isascii() and (c.isalnum() or c in "._=+-") else "_" for c in name) or "_"


def _exported(cluster: Cluster) -> dict[str, str]:
    return {"PYTHONSAFEPATH": "", **cluster.environment}


def _wait_until_seen(job_id: str) -> None:
    """A process does not have its own command line from its first moment on."""
    deadline = time.monotonic() + 10
    while not is_local_controller(job_id) and time.monotonic() < deadline:
        time.sleep(0.02)


@contextlib.contextmanager
def _variables(values: dict[str, str]) -> Iterator[None]:
    before = dict(os.environ)
    os.environ.update(values)
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)


@contextlib.contextmanager
def _silence(detached: bool) -> Iterator[None]:
    """submitit prints what sbatch says, and its local executor leaves a process that would hold our output open."""
    with contextlib.redirect_stderr(io.StringIO()):
        if not detached:
            yield
            return
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


def _reason(text: str) -> str:
    """SLURM's last line says why."""
    lines = [line.split("error: ", 1)[-1].strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it does not say why"
