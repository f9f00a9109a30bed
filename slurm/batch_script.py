"""The batch script of a job: sbatch's options, the user's setup, and one srun.

It differs from submitit's script in two ways. ``batch_functions.sh`` acts whenever the script ends, for whatever
reason. And srun gets all numbers of nodes, tasks and CPUs as options, because it would otherwise read them from
variables that an outer job, a profile or a module may have set.
"""

import shlex
import sys

from slurm.cluster import Cluster
from slurm.job import Resources

_COMMAND = "-u -m submitit.core._submit .."  # starts the pickled `RankTask` of the folder above


def batch_script(
    resources: Resources,
    cluster: Cluster,
    name: str,
    count: int = 1,
    after: str | None = None,
    at_once: int | None = None,
) -> str:
    """Return the script that `submit_jobs` hands to sbatch.

    Args:
        name: the job's name, a word from `plain_word`.
        count: number of jobs; more than one make an array.
        after: id of a job that must succeed first.
        at_once: how many jobs of an array may run at the same time; None: all.
    """
    python = cluster.python or shlex.quote(sys.executable)
    # A container that srun starts (pyxis) wraps the ranks only; the script itself runs on the node, with its Python.
    script_python = shlex.quote(sys.executable) if "container-image" in cluster.srun else python
    partition = resources.partition or cluster.partition
    setup = [*cluster.setup, *(f"export {key}={shlex.quote(value)}" for key, value in cluster.environment.items())]
    return _TEMPLATE.format(
        options="\n".join(_sbatch_options(resources, cluster, name, count, after, at_once)),
        script_python=shlex.quote(script_python),
        retries=cluster.retries,
        partition=shlex.quote(partition) if partition else '"$SLURM_JOB_PARTITION"',
        setup="\n".join(["# Setup", *setup, ""]) if setup else "",
        tasks=resources.tasks_per_node,
        srun=" ".join(_srun_options(resources, cluster, count)),
        command=f"{python} {_COMMAND}",
    )


def save_seconds(resources: Resources, cluster: Cluster) -> int:
    """Return how many seconds before its time limit the job is told to save.

    This is the profile's `save_seconds`, but at most a quarter of the limit.
    """
    return min(cluster.save_seconds, resources.minutes * 15) if resources.minutes else cluster.save_seconds


def _sbatch_options(
    resources: Resources, cluster: Cluster, name: str, count: int, after: str | None, at_once: int | None
) -> list[str]:
    gpus = resources.gpus_per_node or None
    log = "%A_%a_0_log.out" if count > 1 else "%j_0_log.out"
    options: dict[str, str | int | bool | None] = {
        "job-name": name,
        "partition": resources.partition or cluster.partition,
        "account": cluster.account,
        "qos": cluster.qos,
        "constraint": cluster.constraint,
        "exclude": cluster.exclude,
        "time": resources.minutes,
        "nodes": resources.nodes,
        # Not --ntasks-per-node: with it, sbatch never allocates more than the smallest number of `--nodes 2-8`.
        "mincpus": resources.tasks_per_node * resources.cpus_per_task,
        "gpus-per-node": f"{resources.gpu_type}:{gpus}" if gpus and resources.gpu_type else gpus,
        "mem": f"{cluster.memory_gb}GB" if cluster.memory_gb else None,
        "dependency": f"afterok:{after}" if after else None,
        "kill-on-invalid-dep": "yes",  # a job whose predecessor failed would otherwise wait for ever
        "array": f"0-{count - 1}%{min(count, at_once or count)}" if count > 1 else None,
        "requeue": True,
        "signal": f"USR2@{save_seconds(resources, cluster)}",
        "open-mode": "append",  # a requeued job keeps the log of its earlier starts
        "output": f"../{log}",
        **cluster.sbatch,
    }
    return [
        f"#SBATCH --{key}" + ("" if value is True else f"={shlex.quote(str(value))}")
        for key, value in sorted(options.items())
        if value is not None
    ]


def _srun_options(resources: Resources, cluster: Cluster, count: int) -> list[str]:
    log = "%A_%a_%t_log.out" if count > 1 else "%j_%t_log.out"
    own = {
        "output": f"../{log}",
        "cpus-per-task": str(resources.cpus_per_task),
        "ntasks-per-node": str(resources.tasks_per_node),
        "kill-on-bad-exit": "1",
        "export": "ALL",  # with `export=NONE` for sbatch, srun would pass nothing on, not even PATH
    }
    words = ["--unbuffered", *(f"--{key}={shlex.quote(value)}" for key, value in own.items())]
    if "container-image" in cluster.srun and "container-workdir" not in cluster.srun:
        words.append('--container-workdir="$PWD"')  # the ranks find their code in the working directory
    for key, value in cluster.srun.items():
        words.append(f"--{key}" if value is True else f"--{key}={shlex.quote(value)}")
    return words


_TEMPLATE = """\
#!/bin/bash

# Options
{options}

python={script_python}
retries={retries}
partition={partition}
source slurm/batch_functions.sh || exit 1  # records and decides at every end of this script

{setup}
# Command
after_setup
srun --nodes="$SLURM_JOB_NUM_NODES" --ntasks="$((SLURM_JOB_NUM_NODES * {tasks}))" {srun} \\
  {command} 2> >(keep_messages) &
end_with $!
"""
