"""Runs SLURM's commands without variables that would change their behaviour, and retries while SLURM is busy."""

import os
import subprocess
import time
from collections.abc import Mapping

from recipes.errors import UserError

# Every program of SLURM reads variables with its own prefix that change what it does or prints (SQUEUE_FORMAT,
# SINFO_STATES, SBATCH_TIMELIMIT, ...). SLURM_* are set inside of a job, and sbatch and srun would take its size from
# them.
_PREFIXES = (
    *("SLURM_", "SLURMD_", "SBATCH_", "SRUN_", "SALLOC_", "SQUEUE_", "SACCT_", "SINFO_", "SCONTROL_", "SCANCEL_"),
    *("SPRIO_", "SSTAT_", "SACCTMGR_", "PMI_", "PMIX_"),
)
# These select the cluster that is asked and identify the user.
_KEPT = {"SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT"}
# SLURM and launchers set these for the processes of one job. A job that is submitted from inside must not inherit them.
_OF_A_JOB = {
    *("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "ZE_AFFINITY_MASK", "GPU_DEVICE_ORDINAL"),
    *("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"),
    "BIGBATCH_LOCAL_RANK",
    *("SUBMITIT_EXECUTOR", "SUBMITIT_FOLDER"),
}
_TRIES = 3
_PAUSE = 2.0  # seconds between tries
_TIMEOUT = 60.0  # seconds that one try may take
_UNREACHABLE = (  # parts of the messages of a controller or an accounting daemon that is away or too busy
    *("Unable to contact", "connect failure", "Connection refused", "timed out", "Zero Bytes", "not responding"),
    *("Problem talking to the database", "Connection reset", "temporarily unavailable", "Unable to establish"),
    *("retry later", "Unexpected message received", "Incomplete response"),
)


class SlurmDidNotAnswer(UserError):
    """SLURM did not answer in several tries, so nothing is known about its jobs."""


class SlurmRefused(UserError):
    """SLURM answered a command with an error."""


def clean_environment(environment: Mapping[str, str] = os.environ) -> dict[str, str]:
    """Return the environment without the variables by which an outer job or the user's shell changes SLURM's commands.

    SBATCH_CLUSTERS becomes SLURM_CLUSTERS, so that every command asks the cluster that jobs are submitted to.
    """
    inside = "SLURM_JOB_ID" in environment
    kept = {
        name: value
        for name, value in environment.items()
        if name in _KEPT or not (name.startswith(_PREFIXES) or (inside and name in _OF_A_JOB))
    }
    if "SBATCH_CLUSTERS" in environment:
        kept.setdefault("SLURM_CLUSTERS", environment["SBATCH_CLUSTERS"])
    return kept


def ask(command: list[str]) -> str:
    """Run a command that changes nothing, and return what it prints; try again if SLURM does not answer.

    Raises:
        SlurmDidNotAnswer: SLURM did not answer in several tries.
        SlurmRefused: it answered with an error.
        FileNotFoundError: the command is not installed here.
    """
    reason = ""
    for number in range(_TRIES):
        if number:
            time.sleep(_PAUSE)
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT, env=clean_environment())
        except subprocess.TimeoutExpired:
            reason = f"{command[0]} took over {_TIMEOUT:.0f} s"
            continue
        # squeue and scontrol exit with 0 on some lost connections, so the message decides too.
        if done.returncode == 0 and not any(part in done.stderr for part in _UNREACHABLE):
            return done.stdout
        reason = reason_of(done.stderr) or f"{command[0]} failed without a message"
        if not any(part in done.stderr for part in _UNREACHABLE) and done.stderr.strip():
            raise SlurmRefused(f"SLURM does not answer {command[0]}: {reason}")
    raise SlurmDidNotAnswer(f"SLURM did not answer ({reason}): try again later")


def reason_of(text: str) -> str:
    """Return SLURM's error messages in one line, without its hint to use --help."""
    lines = []
    for line in text.splitlines():
        message = line.strip()
        for prefix in ("sbatch:", "squeue:", "sacct:", "sinfo:", "scontrol:", "scancel:", "srun:", "error:", "fatal:"):
            message = message.removeprefix(prefix).strip()
        if message and not message.startswith("Try "):
            lines.append(message)
    return "; ".join(dict.fromkeys(lines))
