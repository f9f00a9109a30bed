"""Connects the ranks of a job once their nodes are known to work."""

import os
from datetime import timedelta

import torch
from torch import distributed

from launcher.world import World

# How long a rank waits for the others. NCCL's ten minutes are too short: one rank may write a large checkpoint or
# download weights while the others wait. The launcher notices a rank that died long before this.
TIMEOUT = timedelta(hours=2)


class Connection:
    """The address at which the ranks of a job meet, for a first group over the network and then for that of training.

    A group of NCCL cannot begin while one rank has no working GPU: the others would wait for it. So the ranks first
    compare what they found over gloo, which needs no GPU.

    Args:
        world: with more than one rank. MASTER_ADDR and MASTER_PORT are set.
        timeout: of the first group and of the address.
    """

    def __init__(self, world: World, timeout: timedelta):
        self.world = world
        address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        # One store for both groups. A second one at the same port could be mistaken for the first.
        self._store = distributed.TCPStore(address, port, world.size, is_master=world.is_main, timeout=timeout)
        self._begin("gloo", timeout)

    def connect_for_training(self) -> None:
        """End the first group and begin the one that Accelerate then uses: NCCL's on GPUs, else gloo's."""
        distributed.destroy_process_group()
        self._begin("nccl" if torch.cuda.is_available() else "gloo", TIMEOUT)

    def _begin(self, backend: str, timeout: timedelta) -> None:
        store = distributed.PrefixStore(f"{backend} {timeout}", self._store)
        distributed.init_process_group(
            backend, store=store, rank=self.world.rank, world_size=self.world.size, timeout=timeout
        )
