"""Chooses the GPU of a rank, and refuses two ranks on the same GPU."""

import os
import socket
from collections.abc import Mapping

import torch
from torch import distributed

from launcher.world import LOCAL_SIZE_NAMES, World, set_libraries_local_rank, this_process
from recipes.errors import UserError

# Variables that say that a launcher has chosen the GPUs which this process sees.
_RESTRICTED = ("CUDA_VISIBLE_DEVICES", "ROCR_VISIBLE_DEVICES", "HIP_VISIBLE_DEVICES", "SLURM_PROCID")


def gpu_of_rank(world: World, visible: int, environment: Mapping[str, str] = os.environ) -> int:
    """Return the index of a rank's GPU among those that its process sees.

    It is the rank's number on its node, or 0 if each process sees only its own GPU (`--gpus-per-task`,
    `--gpu-bind=single`).

    Args:
        world: of the rank.
        visible: the number of GPUs that the process sees.
        environment: says whether a launcher restricted them.

    Raises:
        UserError: there are more ranks on the node than GPUs, which NCCL does not allow. One of the node's ranks has a
            message to print.
    """
    if visible == 1 and any(environment.get(name) for name in _RESTRICTED):
        return 0
    # All ranks of the node end, so that the first one can say why. A launcher that does not tell how many there are
    # ends those without a GPU.
    is_counted = any(name in environment for name in LOCAL_SIZE_NAMES)
    processes = world.local_size if is_counted else world.local_rank + 1
    if processes > visible:
        speaks = world.local_rank == (0 if is_counted else visible)
        prefix = f"[rank {world.rank}] " if speaks and not world.is_main else ""
        raise UserError(
            f"{prefix}{processes} processes were started on a node with {visible} visible "
            f"GPU{'s' if visible > 1 else ''}, and each needs its own: start {visible} per node, e.g. with "
            f"`bigbatch train --procs {visible}`"
        )
    return world.local_rank


def use_gpu_of_rank() -> None:
    """Give LOCAL_RANK the index of this rank's GPU: Accelerate, DDP and DeepSpeed take one for the other."""
    world = this_process()
    if world.is_launched and torch.cuda.is_available():
        set_libraries_local_rank(gpu_of_rank(world, torch.cuda.device_count()))


def identity_of_gpu() -> str:
    """Return which GPU this process uses, different for every GPU of a job, whatever index a process sees it under."""
    found = torch.cuda.get_device_properties(torch.cuda.current_device())
    # Some drivers leave the UUID empty, so the place on the node's bus is part of it.
    bus = getattr(found, "pci_domain_id", ""), getattr(found, "pci_bus_id", ""), getattr(found, "pci_device_id", "")
    return f"{socket.gethostname()} {bus} {found.uuid}"


def refuse_shared_gpus(gpus: list[str]) -> None:
    """Compare the identities of all ranks' GPUs.

    Raises:
        UserError: two ranks use the same GPU, which NCCL does not allow.
    """
    for rank, gpu in enumerate(gpus):
        if (first := gpus.index(gpu)) < rank:
            raise UserError(
                f"ranks {first} and {rank} were started on the same GPU, and each needs its own: start one process per "
                f"visible GPU, or make as many visible as there are processes on a node, e.g. with CUDA_VISIBLE_DEVICES"
            )


def check_each_rank_has_a_gpu(world: World) -> None:
    """Compare the GPUs of all ranks, which are connected but have not yet communicated over NCCL.

    The index of a GPU says nothing where each process sees only one: SLURM may have given each another one, or
    CUDA_VISIBLE_DEVICES may have given all the same.

    Raises:
        UserError: on every rank, if two use the same GPU.
    """
    if world.size == 1 or not torch.cuda.is_available():
        return
    group = distributed.group.WORLD
    assert group is not None
    store = group.get_group_store()  # where the ranks have met, so that no collective is needed
    store.set(f"GPU of rank {world.rank}", identity_of_gpu())
    refuse_shared_gpus([store.get(f"GPU of rank {rank}").decode() for rank in range(world.size)])
