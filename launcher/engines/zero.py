"""DeepSpeed ZeRO: the processes share the optimizer's state out (stage 1), gradients too (2), parameters too (3).

DeepSpeed lays the parameters of a group end to end and gives every process a run of them, of which torch's own optimizer
sees one flat float32 tensor. Moments and average (EMA) are tensors of the same layout, so they are shared out and
off-loaded with it. A checkpoint is written as these runs, under the names of the parameters they are runs of.

DeepSpeed is started beside Accelerate's processes, not through `Accelerator.prepare`: there the update would happen inside
`backward`, out of the loop's hands; and on a CPU it would silently be plain DDP.
"""

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import NamedTuple

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor, nn

from launcher.checkpoints.checkpoint import CheckpointReader, TensorShard
from launcher.cut import Cut
from launcher.engines.base import WEIGHTS, Engine, optimizer_kinds, swapped_in
from launcher.engines.deepspeed_config import deepspeed_config
from launcher.engines.loss_scale import LossScale
from launcher.engines.optimizer import EMA, make_optimizer, set_lr
from recipes.schema import Recipe

if not torch.cuda.is_available():
    os.environ.setdefault("DS_ACCELERATOR", "cpu")  # DeepSpeed warns where it has to find that out itself
    logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)
import deepspeed

# An extension that takes half a minute and a compiler when first used on a CPU, and that only inference calls. DeepSpeed asks for
# no other in this dictionary; making it ourselves spares every process the search for compilers that would fill it.
vars(deepspeed.ops).setdefault("__compatible_ops__", {})["deepspeed_shm_comm"] = False

_OFFLOADED = {"none": "", "cpu": ", off-loaded to the CPU", "nvme": ", off-loaded to a disk"}


class FlatSlice(NamedTuple):
    """Elements `start` to `start + count` of a parameter, which lie in this process's flat tensor from `offset` on."""

    name: str
    parameter: nn.Parameter
    start: int
    count: int
    offset: int


class Zero(Engine):
    """Any stage from 1 to 3; with off-loading, optimizer and state are on the CPU or on a disk."""

    def __init__(self, recipe: Recipe, model: nn.Module, accelerator: Accelerator, cut: Cut):
        super().__init__(recipe, model, accelerator)
        _join_deepspeed(accelerator)
        self.stage = recipe.engine.zero
        self.title = f"ZeRO-{self.stage}{_OFFLOADED[recipe.engine.offload]}"
        self.optimizer = make_optimizer(self.module, recipe)
        self.model, *_ = deepspeed.initialize(
            model=accelerator.prepare_model(self.module, evaluation_mode=True),  # adds autocast, but not DDP
            optimizer=self.optimizer,
            config=deepspeed_config(recipe, cut, sum(parameter.numel() for parameter in self.names)),
        )
        self.partitions = self.model.optimizer
        self.flats: list[Tensor] = (
            self.partitions.fp32_partitioned_groups_flat
            if self.stage == 3
            else self.partitions.single_partition_of_fp32_groups
        )
        self.slices = self._runs_of_stage_3() if self.stage == 3 else self._runs()
        self.loss_scale = LossScale() if accelerator.mixed_precision == "fp16" else None
        if self.loss_scale:
            self.partitions.override_loss_scale(self.loss_scale.value)

    def warm_up_ddp_buckets(self, images: Tensor) -> None:
        """DeepSpeed arranges its buckets the same way every time: there is nothing to do."""

    def micro_batch(self, last_of_step: bool):
        self.model.set_gradient_accumulation_boundary(last_of_step)
        return nullcontext()

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def backward(self, loss: Tensor) -> None:
        self.model.backward(loss, scale_wrt_gas=False)  # the loss is divided by the global batch already

    def apply_gradient(self, lr: float) -> bool:
        set_lr(self.optimizer, lr)
        self.model.step()
        applied = self.model.was_step_applied()
        if self.loss_scale:
            self.loss_scale.update(applied)
            self.partitions.override_loss_scale(self.loss_scale.value)
        return applied

    def scalars(self) -> dict[str, float]:
        return super().scalars() | (self.loss_scale.scalars() if self.loss_scale else {})

    def close(self) -> None:
        self.model.destroy()
        if self.accelerator.num_processes == 1:
            torch.distributed.destroy_process_group()  # where there are several, Accelerate does it

    def _averaged_parameters(self):
        if not any(EMA in self.optimizer.state.get(flat, {}) for flat in self.flats):
            return nullcontext()  # before the first update the weights are their own average
        return self._averaged_shards() if self.stage == 3 else self._averaged_copies()

    @contextmanager
    def _averaged_copies(self) -> Iterator[None]:
        """Stages 1 and 2: every process has all parameters, of which each can compute its part of the average."""
        raw = [flat.clone() for flat in self.partitions.bit16_groups_flat]
        for group, parts in enumerate(self.partitions.parallel_partitioned_bit16_groups):
            own = self.optimizer.state[self.flats[group]][EMA].to(self.accelerator.device)
            torch.distributed.all_gather(parts, own)
        try:
            yield
        finally:
            for flat, value in zip(self.partitions.bit16_groups_flat, raw):
                flat.copy_(value)

    @contextmanager
    def _averaged_shards(self) -> Iterator[None]:
        """Stage 3: every process puts its part of the average where its part of the parameters is; nothing is exchanged."""
        pairs = []
        for group, flat in enumerate(self.flats):
            with self._in_memory(group):
                average = self.optimizer.state[flat][EMA]
                for run in self.slices[group]:
                    own = average[run.offset : run.offset + run.count]
                    pairs.append(
                        (run.parameter.ds_tensor[: run.count], own.clone() if self._is_on_disk(group) else own)
                    )
        self.partitions._partition_all_parameters()
        with swapped_in(pairs):
            self._gather_kept_whole()
            try:
                yield
            finally:
                self.partitions._partition_all_parameters()
        self._gather_kept_whole()

    def _gather_kept_whole(self) -> None:
        """Put the small parameters, which stage 3 keeps whole in every process, together from their parts."""
        if self.partitions.persistent_parameters:
            self.partitions.persistent_parameters[0].all_gather(self.partitions.persistent_parameters)

    def _parameter_state(self) -> Iterator[TensorShard]:
        for group, flat in enumerate(self.flats):
            with self._in_memory(group):
                kinds = {WEIGHTS: flat} | {
                    kind: value
                    for kind, value in self.optimizer.state.get(flat, {}).items()
                    if isinstance(value, Tensor) and value.shape == flat.shape
                }
                for run in self.slices[group]:
                    for kind, value in kinds.items():
                        yield TensorShard(kind, run.name, value[run.offset : run.offset + run.count], run.start)

    def _load_optimizer_state(self, saved: CheckpointReader) -> None:
        for group, flat in enumerate(self.flats):
            with self._in_memory(group, changed=True):
                state = {kind: torch.zeros_like(flat) for kind in optimizer_kinds(saved)}
                for run in self.slices[group]:
                    for kind, value in state.items():
                        elements = saved.elements(kind, run.name, run.start, run.start + run.count)
                        value[run.offset : run.offset + run.count] = elements
                if "exp_avg" in state:
                    state["step"] = torch.tensor(float(self.updates), device=flat.device)
                self.optimizer.state[flat] = state
        if self.loss_scale and "loss_scale" in saved.scalars:
            self.loss_scale.load(saved.scalars)
            self.partitions.override_loss_scale(self.loss_scale.value)

    def _runs(self) -> list[list[FlatSlice]]:
        """Stages 1 and 2: the whole group is cut into runs of one length, wherever parameters begin and end."""
        found = []
        for parameters in self.partitions.bit16_groups:
            runs = []
            for parameter in parameters:
                if parameter._hp_mapping is not None:
                    there, here = parameter._hp_mapping.lp_fragment_address, parameter._hp_mapping.hp_fragment_address
                    runs.append(FlatSlice(self.names[parameter], parameter, there.start, there.numel, here.start))
            found.append(runs)
        return found

    def _runs_of_stage_3(self) -> list[list[FlatSlice]]:
        """Stage 3: every parameter is cut into runs of one length, the last of them padded."""
        rank, found = self.accelerator.process_index, []
        for parameters in self.partitions.fp16_groups:
            runs = []
            for parameter in parameters:
                _, offset, length = self.partitions.grad_position[self.partitions.get_param_id(parameter)]
                start = min(rank * length, parameter.ds_numel)
                count = min(length, parameter.ds_numel - start)
                if count:
                    runs.append(FlatSlice(self.names[parameter], parameter, start, count, offset))
            found.append(runs)
        return found

    def _is_on_disk(self, group: int) -> bool:
        return self.stage == 3 and self.partitions._swappable_optimizer_subgroup(group)

    @contextmanager
    def _in_memory(self, group: int, changed: bool = False) -> Iterator[None]:
        """Inside, the flat tensor of a group and its state are in memory, wherever they are kept."""
        if not self._is_on_disk(group):
            yield
            return
        self.partitions._optimizer_states_and_gradient_swap_in(group)
        yield
        if changed:
            self.partitions._optimizer_states_and_gradient_swap_out(group)
        else:
            self.partitions._release_swap_buffers(group)


def _join_deepspeed(accelerator: Accelerator) -> None:
    """Let DeepSpeed use the processes that Accelerate brought together; a lone one is a group of one."""
    deepspeed.utils.logger.setLevel(logging.ERROR)  # it warns of what is meant, e.g. of an optimizer that is torch's
    warnings.filterwarnings("ignore", message="`torch.distributed.* is deprecated", category=FutureWarning)
    backend = "nccl" if accelerator.device.type == "cuda" else "gloo"
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", str(accelerator.local_process_index))
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
