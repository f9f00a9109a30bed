"""Translates the variables of an srun into those by which torch's processes find each other (RANK, WORLD_SIZE, …).

``srun bigbatch train``, ``lr`` and ``replay`` inside an allocation therefore need no other launcher.
"""

import re
from collections.abc import Mapping

from recipes.errors import UserError
from slurm.node_names import node_names

_PORTS = range(20000, 32768)  # below the ports that systems hand out by themselves


def rendezvous_port(number: int) -> int:
    """Return a port on which the ranks of a job meet; jobs with different numbers rarely share one."""
    return _PORTS[number % len(_PORTS)]


def step_variables(environment: Mapping[str, str]) -> dict[str, str]:
    """Return the variables that torchrun would set, for a task of an srun; empty outside an srun, or if they are set.

    Raises:
        UserError: SLURM's variables are incomplete, or a node's tasks are not one per GPU.
    """
    tasks = environment.get("SLURM_STEP_NUM_TASKS", "")
    if "WORLD_SIZE" in environment or not tasks.isdecimal() or int(tasks) < 2:
        return {}
    names = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_STEP_NODELIST", "SLURM_STEP_TASKS_PER_NODE")
    missing = [name for name in (*names, "SLURM_JOB_ID") if not environment.get(name)]
    if missing:
        raise UserError(
            f"srun started {tasks} tasks, and {missing[0]} is not set, so the ranks cannot find each other: "
            f"use `bigbatch submit`, or start one task with `--procs {tasks}`"
        )
    rank, local_rank, node = (int(environment[name]) for name in names[:3])
    on_node = _tasks_by_node(environment["SLURM_STEP_TASKS_PER_NODE"])[node]
    gpus = environment.get("SLURM_GPUS_ON_NODE", "")
    if gpus.isdecimal() and int(gpus) != on_node:
        raise UserError(
            f"srun started {on_node} task{'s' if on_node > 1 else ''} on a node with {gpus} GPUs: "
            f"use `srun --ntasks-per-node={gpus}`, one task per GPU"
        )
    number = int(environment["SLURM_JOB_ID"]) * 64 + int(environment.get("SLURM_STEP_ID", 0))
    return {
        "RANK": str(rank),
        "WORLD_SIZE": tasks,
        "LOCAL_RANK": str(local_rank),
        "LOCAL_WORLD_SIZE": str(on_node),
        "MASTER_ADDR": node_names(environment["SLURM_STEP_NODELIST"])[0],
        "MASTER_PORT": str(rendezvous_port(number)),
    }


def _tasks_by_node(text: str) -> list[int]:
    """Return the tasks of each node from SLURM's short notation, e.g. ``8(x3),2``."""
    counts: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"(\d+)(?:\(x(\d+)\))?", part)
        if match is None:
            raise UserError(f"SLURM_STEP_TASKS_PER_NODE={text} cannot be read: use one task with `--procs`")
        counts += [int(match[1])] * int(match[2] or 1)
    return counts
