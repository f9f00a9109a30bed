"""How many processes prepare images beside each training process."""

from data.cpus import usable_cpus
from launcher.world import this_process

_MOST = 16  # more loader processes than this only compete for memory bandwidth


def default_workers() -> int:
    """Loader processes per training process, from the CPUs of this machine."""
    return loader_processes(cpus_of_process())


def cpus_of_process() -> int:
    """The usable CPUs of this machine, divided among the training processes on it."""
    return max(1, usable_cpus() // this_process().local_size)


def loader_processes(cpus: int) -> int:
    """How many processes prepare images where a training process has so many CPUs, one of which is its own."""
    return max(1, min(_MOST, cpus - 1))
