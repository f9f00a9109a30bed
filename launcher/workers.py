"""Chooses how many loader processes prepare images for each training process."""

import os

from data.cpus import usable_cpus
from launcher.world import this_process

_MOST = 16  # more loader processes than this only compete for memory bandwidth


def default_workers() -> int:
    """Return the number of loader processes per training process that this machine's CPUs allow."""
    return loader_processes(cpus_of_process())


def cpus_of_process() -> int:
    """Return the number of usable CPUs of this machine per training process.

    A task of an srun has CPUs of its own, and SLURM may have bound the task to them already.
    """
    world, of_task = this_process(), os.environ.get("SLURM_CPUS_PER_TASK", "")
    is_task = os.environ.get("SLURM_STEP_NUM_TASKS") == str(world.size)
    if is_task and of_task.isdecimal():
        return max(1, min(usable_cpus(), int(of_task)))
    return max(1, usable_cpus() // world.local_size)


def loader_processes(cpus: int) -> int:
    """Return the number of loader processes for a training process with `cpus` CPUs, one of which it needs itself."""
    return max(1, min(_MOST, cpus - 1))
