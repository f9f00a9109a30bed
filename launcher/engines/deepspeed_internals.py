"""The parts of DeepSpeed outside its documented interface that this project depends on, all in this one file.

DeepSpeed has no public way to read or write sharded state under the names of parameters. These classes use its
optimizer objects instead, to find each parameter's elements in a rank's flat tensors and to replace parameters for an
evaluation. `tests/launcher/engines/test_deepspeed_internals.py` checks every attribute used here on real engines of
each stage, so that an upgrade of DeepSpeed that moves one fails there.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed
from torch import Tensor, nn

from launcher.engines.base import swapped_in


class FlatSlice(NamedTuple):
    """A contiguous range of a parameter's elements that this rank holds.

    Attributes:
        name: of the parameter in the model.
        parameter: of the model; empty under ZeRO-3 while it is not gathered.
        start: the first of its elements, in row-major order.
        length: how many elements there are.
        offset: where they begin in the group's flat tensor.
    """

    name: str
    parameter: nn.Parameter
    start: int
    length: int
    offset: int


class Partitions(ABC):
    """One rank's part of the training state, by the optimizer's parameter groups.

    Attributes:
        flats: this rank's float32 weights, one flat tensor per group. They are the parameters that torch's optimizer
            sees, so its state holds tensors of the same layout.
        slices: for each flat tensor, the elements of parameters that it holds, and where.
    """

    flats: list[Tensor]
    slices: list[list[FlatSlice]]

    @abstractmethod
    def frozen(self) -> Iterator[tuple[str, int, Tensor]]:
        """Yield this rank's part of the parameters that do not train: name, first element, elements in row-major order.

        Together, the ranks yield every element once.
        """

    def __init__(self, optimizer: Any):
        self.optimizer = optimizer  # DeepSpeed's, which wraps torch's

    def set_loss_scale(self, scale: float) -> None:
        """Scale the loss of the following backward passes, and unscale the gradient at the update."""
        self.optimizer.override_loss_scale(scale)

    def in_memory(self, group: int, changed: bool = False) -> AbstractContextManager[None]:
        """Keep a group's flat tensor and its state in memory inside the block; store them again if `changed`."""
        return nullcontext()

    @abstractmethod
    def parameters_replaced(self, value_of: Callable[[Tensor], Tensor]) -> AbstractContextManager[None]:
        """Give the parameters other values inside the block. All ranks enter and leave together.

        Args:
            value_of: returns the values for one of `flats`, in its layout.
        """


class ReplicatedParameters(Partitions):
    """Stages 1 and 2: every rank has all parameters, and a contiguous part of each group's optimizer state."""

    def __init__(self, optimizer: Any, names: dict[nn.Parameter, str], device: torch.device):
        super().__init__(optimizer)
        self.device, self.names = device, names
        self.flats = optimizer.single_partition_of_fp32_groups
        self.slices = [
            [found for parameter in parameters if (found := _mapped_slice(parameter, names[parameter]))]
            for parameters in optimizer.bit16_groups
        ]

    def frozen(self) -> Iterator[tuple[str, int, Tensor]]:
        if torch.distributed.get_rank() == 0:
            for parameter, name in self.names.items():
                if not parameter.requires_grad:
                    yield name, 0, parameter.detach().flatten()

    @contextmanager
    def parameters_replaced(self, value_of: Callable[[Tensor], Tensor]) -> Iterator[None]:
        groups = self.optimizer.bit16_groups_flat  # float32 here, whatever the name says: precision comes from autocast
        kept = [flat.clone() for flat in groups]
        for own, parts in zip(self.flats, self.optimizer.parallel_partitioned_bit16_groups):
            torch.distributed.all_gather(parts, value_of(own).to(self.device))  # `parts` are views of the group's flat
        try:
            yield
        finally:
            for flat, value in zip(groups, kept):
                flat.copy_(value)


def _mapped_slice(parameter: nn.Parameter, name: str) -> FlatSlice | None:
    """Return the elements of a parameter that lie in this rank's partition; None if there are none."""
    mapping = parameter._hp_mapping  # type: ignore[attr-defined]  # DeepSpeed sets it
    if mapping is None:
        return None
    start, length = mapping.lp_fragment_address.start, mapping.lp_fragment_address.numel
    return FlatSlice(name, parameter, start, length, mapping.hp_fragment_address.start)


class ShardedParameters(Partitions):
    """Stage 3: every parameter is cut into shards of equal length, the last one padded, and gathered for use."""

    def __init__(self, optimizer: Any, names: dict[nn.Parameter, str], rank: int):
        super().__init__(optimizer)
        self.names, self.rank = names, rank
        self.flats = optimizer.fp32_partitioned_groups_flat
        self.slices = [
            [found for parameter in parameters if (found := self._slice(parameter, names[parameter], rank))]
            for parameters in optimizer.fp16_groups
        ]

    def _slice(self, parameter: Any, name: str, rank: int) -> FlatSlice | None:
        _, offset, padded = self.optimizer.grad_position[self.optimizer.get_param_id(parameter)]
        start = min(rank * padded, parameter.ds_numel)
        length = min(padded, parameter.ds_numel - start)
        return FlatSlice(name, parameter, start, length, offset) if length else None

    def frozen(self) -> Iterator[tuple[str, int, Tensor]]:
        for parameter, name in self.names.items():
            shard: Any = parameter
            if parameter.requires_grad:
                continue
            padded = shard.ds_tensor.numel()
            start = min(self.rank * padded, shard.ds_numel)
            if length := min(padded, shard.ds_numel - start):
                yield name, start, shard.ds_tensor[:length]

    @contextmanager
    def in_memory(self, group: int, changed: bool = False) -> Iterator[None]:
        if not self._is_on_disk(group):
            yield
            return
        self.optimizer._optimizer_states_and_gradient_swap_in(group)
        yield
        if changed:
            self.optimizer._optimizer_states_and_gradient_swap_out(group)
        else:
            self.optimizer._release_swap_buffers(group)

    @contextmanager
    def parameters_replaced(self, value_of: Callable[[Tensor], Tensor]) -> Iterator[None]:
        """Replace this rank's shards; only the small parameters, which stay gathered, need communication."""
        pairs = []
        for group, flat in enumerate(self.flats):
            with self.in_memory(group):
                values = value_of(flat)
                for found in self.slices[group]:
                    shard: Any = found.parameter
                    value = values[found.offset : found.offset + found.length]
                    # The buffers of a group on a disk are used again for the next group.
                    pairs.append((shard.ds_tensor[: found.length], value.clone() if self._is_on_disk(group) else value))
        self.optimizer._partition_all_parameters()  # a gathered copy would hide the other values
        with swapped_in(pairs):
            self._gather_persistent()
            try:
                yield
            finally:
                self.optimizer._partition_all_parameters()
        self._gather_persistent()

    def _gather_persistent(self) -> None:
        """Assemble the small parameters, which stage 3 keeps gathered on every rank, from their shards."""
        if persistent := self.optimizer.persistent_parameters:
            persistent[0].all_gather(persistent)

    def _is_on_disk(self, group: int) -> bool:
        return bool(self.optimizer._swappable_optimizer_subgroup(group))


def set_group_timeout(groups: Any, timeout: timedelta) -> None:
    """Let DeepSpeed's collectives wait for other ranks as long as `timeout`; called before an engine is made.

    DeepSpeed uses a copy of the default group, which it would make with torch's own timeout: ten minutes under NCCL.

    Args:
        groups: the module `deepspeed.utils.groups`.
        timeout: of the copy.
    """
    groups._WORLD_GROUP = torch.distributed.new_group(timeout=timeout)


def skip_inference_extension(operators: Any) -> None:
    """Tell `deepspeed.ops` that an extension that only inference uses is not available.

    On a CPU, DeepSpeed would compile it at its first import, which takes half a minute and a C++ compiler. DeepSpeed
    looks up no other name in this dictionary. Creating it here also saves every process the search for compilers with
    which DeepSpeed would fill it.
    """
    vars(operators).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False
