"""The rank of this process and the world size, from the environment variables that a launcher sets.

torchrun, accelerate, deepspeed, `bigbatch train --procs` and our jobs on SLURM all set the same variables.
"""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from recipes.errors import UserError

LOCAL_SIZE_NAMES = ("LOCAL_SIZE", "LOCAL_WORLD_SIZE")  # the `deepspeed` launcher sets the first
# The number of this process on its node, once LOCAL_RANK is the index of its GPU instead.
_RANK_ON_NODE = "BIGBATCH_LOCAL_RANK"


@dataclass(frozen=True)
class World:
    """The rank of one process, and the world size of its run.

    Attributes:
        rank: number of this process among all, from 0.
        size: number of processes.
        local_rank: number of this process on its machine, from 0, whichever GPU it uses.
        local_size: number of processes on this machine.
        is_launched: whether a launcher set the variables; without one there is a single process.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    is_launched: bool = False

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def this_process(environment: Mapping[str, str] = os.environ) -> World:
    """Return the rank and world size of this process, which are known before the processes connect to each other.

    Raises:
        UserError: the variables contradict each other, or one of them is not a number.
    """
    if "WORLD_SIZE" not in environment:
        if "RANK" in environment:  # a misspelt WORLD_SIZE: every process would train alone
            raise UserError(
                "RANK is set but WORLD_SIZE is not: let torchrun, accelerate or `bigbatch train --procs` set both, or "
                "unset RANK"
            )
        return World()
    size = _number(environment, "WORLD_SIZE", None)
    rank = _number(environment, "RANK", 0 if size == 1 else None)
    local_size = _number(environment, next((name for name in LOCAL_SIZE_NAMES if name in environment), ""), size)
    name = _RANK_ON_NODE if _RANK_ON_NODE in environment else "LOCAL_RANK"
    local_rank = _number(environment, name, rank % max(1, local_size))
    if not (0 <= rank < size and 0 <= local_rank < local_size <= size):
        raise UserError(
            f"RANK={rank}, WORLD_SIZE={size}, LOCAL_RANK={local_rank} and LOCAL_WORLD_SIZE={local_size} contradict "
            f"each other: let torchrun, accelerate or `bigbatch train --procs` set them, or unset all four"
        )
    return World(rank, size, local_rank, local_size, is_launched=True)


def set_libraries_local_rank(index: int) -> None:
    """Give LOCAL_RANK the index of this rank's GPU, as libraries read it; `this_process` keeps the rank on the node."""
    os.environ[_RANK_ON_NODE] = str(this_process().local_rank)
    os.environ["LOCAL_RANK"] = str(index)


def said_once_per_node(message: str) -> str:
    """Return a mistake that every rank of this node meets so that `launcher.cli.entry` prints it on one of them.

    It prints what rank 0 raises, and on other ranks only what begins with their number.
    """
    world = this_process()
    return f"[rank {world.rank}] {message}" if world.local_rank == 0 and not world.is_main else message


def print_on_main(line: str) -> None:
    """Print a line to standard output on rank 0 only.

    `Accelerator.print` prints once per node. Where each process sees one GPU, it even prints on every rank, because
    LOCAL_RANK is then the index of that GPU (`launcher.engines.rank_gpus.use_gpu_of_rank`).
    """
    if this_process().is_main:
        print(line)


def _number(environment: Mapping[str, str], name: str, default: int | None) -> int:
    """Return the variable as a number; `default` where it is not set, unless that is None."""
    text = environment.get(name)
    if text is None and default is not None:
        return default
    if text is None or not text.isdecimal():
        problem = "is not set" if text is None else f"is {text!r}, not a number"
        raise UserError(
            f"WORLD_SIZE is set, so a launcher seems to have started this process, but {name} {problem}: "
            f"let torchrun, accelerate or `bigbatch train --procs` set both, or unset WORLD_SIZE"
        )
    return int(text)
