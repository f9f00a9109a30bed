"""DeepSpeed ZeRO: the optimizer's state is sharded over the ranks (stage 1), gradients too (2), parameters too (3).

DeepSpeed concatenates the parameters of a group and gives every rank a contiguous part, which torch's own optimizer
sees as one flat float32 tensor. Adam's moments and the EMA are tensors of the same layout, so they are sharded and
offloaded with it. A checkpoint holds these parts split by parameter, under the names of the parameters.

DeepSpeed is initialised directly and not through `Accelerator.prepare`. There the update would happen inside
`backward`, where the loop has no control over it, and on a CPU Accelerate would silently use plain DDP.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed
from accelerate import Accelerator
from torch import Tensor, nn

from launcher.checkpoints.checkpoint import CheckpointReader, TensorShard
from launcher.cut import Cut
from launcher.engines.base import WEIGHTS, Engine, optimizer_kinds
from launcher.engines.connection import TIMEOUT
from launcher.engines.deepspeed_config import deepspeed_config
from launcher.engines.deepspeed_device import expect_no_gpu
from launcher.engines.deepspeed_internals import (
    Partitions,
    ReplicatedParameters,
    ShardedParameters,
    set_group_timeout,
    skip_inference_extension,
)
from launcher.engines.disk_offload import load_file_operator
from launcher.engines.loss_scale import LossScale
from launcher.engines.optimizer import EMA, adam_step, make_optimizer, set_lr
from launcher.world import print_on_main
from recipes.schema import Recipe

if not torch.cuda.is_available():
    expect_no_gpu()
import deepspeed

skip_inference_extension(deepspeed.ops)

_OFFLOADED = {"none": "", "cpu": ", offloaded to the CPU", "nvme": ", offloaded to a disk"}


class Zero(Engine):
    """ZeRO of stage 1, 2 or 3; with offload, optimizer and state are in the CPU's memory or on a disk."""

    def __init__(self, recipe: Recipe, model: nn.Module, accelerator: Accelerator, cut: Cut):
        super().__init__(recipe, model, accelerator)
        if recipe.engine.offload == "nvme":
            load_file_operator(print_on_main)
        _join_deepspeed(accelerator)
        self.title = f"ZeRO-{recipe.engine.zero}{_OFFLOADED[recipe.engine.offload]}"
        self.optimizer = make_optimizer(self.module, recipe)
        self.model, *_ = deepspeed.initialize(
            model=accelerator.prepare_model(self.module, evaluation_mode=True),  # adds autocast, but not DDP
            optimizer=self.optimizer,
            config=deepspeed_config(recipe, cut, sum(parameter.numel() for parameter in self.names)),
        )
        self.partitions: Partitions = (
            ShardedParameters(self.model.optimizer, self.names, accelerator.process_index)
            if recipe.engine.zero == 3
            else ReplicatedParameters(self.model.optimizer, self.names, accelerator.device)
        )
        self.loss_scale = LossScale() if accelerator.mixed_precision == "fp16" else None
        if self.loss_scale:
            self.partitions.set_loss_scale(self.loss_scale.value)

    def warm_up_ddp_buckets(self, images: Tensor) -> None:
        """Do nothing: DeepSpeed arranges its buckets the same way every time."""

    def micro_batch(self, last_of_step: bool) -> AbstractContextManager[None]:
        self.model.set_gradient_accumulation_boundary(last_of_step)
        return nullcontext()

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def backward(self, loss: Tensor) -> None:
        self.model.backward(loss, scale_wrt_gas=False)  # the loss is divided by the global batch already

    def scaled(self, loss: Tensor) -> Tensor:
        return loss * self.loss_scale.value if self.loss_scale else loss

    def apply_gradient(self, lr: float) -> bool:
        set_lr(self.optimizer, lr)
        self.model.step()
        self.gradient_norm = torch.as_tensor(self.model.get_global_grad_norm())
        applied = bool(self.model.was_step_applied())
        if self.loss_scale:
            self.loss_scale.update(applied)
            self.partitions.set_loss_scale(self.loss_scale.value)
        return applied

    def scalars(self) -> dict[str, float]:
        return super().scalars() | (self.loss_scale.scalars() if self.loss_scale else {})

    def close(self) -> None:
        """Release DeepSpeed's hooks and buffers, and the group of a single process, which Accelerate would not end."""
        self.model.destroy()
        if self.accelerator.num_processes == 1:
            torch.distributed.destroy_process_group()

    def _ema_parameters(self) -> AbstractContextManager[None]:
        if not any(EMA in self.optimizer.state.get(flat, {}) for flat in self.partitions.flats):
            return nullcontext()  # before the first update, the EMA equals the weights
        return self.partitions.parameters_replaced(lambda flat: self.optimizer.state[flat][EMA])

    def _parameter_state(self) -> Iterator[TensorShard]:
        for name, start, elements in self.partitions.frozen():
            yield TensorShard(WEIGHTS, name, elements, start)
        for group, flat in enumerate(self.partitions.flats):
            with self.partitions.in_memory(group):
                kinds = {WEIGHTS: flat} | {
                    kind: value
                    for kind, value in self.optimizer.state.get(flat, {}).items()
                    if isinstance(value, Tensor) and value.shape == flat.shape
                }
                for found in self.partitions.slices[group]:
                    for kind, value in kinds.items():
                        elements = value[found.offset : found.offset + found.length]
                        yield TensorShard(kind, found.name, elements, found.start)

    def _load_optimizer_state(self, saved: CheckpointReader) -> None:
        for group, flat in enumerate(self.partitions.flats):
            with self.partitions.in_memory(group, changed=True):
                state = {kind: torch.zeros_like(flat) for kind in optimizer_kinds(saved)}
                for found in self.partitions.slices[group]:
                    for kind, value in state.items():
                        elements = saved.elements(kind, found.name, found.start, found.start + found.length)
                        value[found.offset : found.offset + found.length] = elements
                if "exp_avg" in state:
                    # Adam's step is not saved: it equals the number of updates.
                    state["step"] = adam_step(self.optimizer, self.updates, flat.device)
                self.optimizer.state[flat] = state
        if self.loss_scale and "loss_scale" in saved.scalars:
            self.loss_scale.load(saved.scalars)
            self.partitions.set_loss_scale(self.loss_scale.value)


def _join_deepspeed(accelerator: Accelerator) -> None:
    """Let DeepSpeed use the processes that Accelerate has connected; a single process becomes a group of one."""
    deepspeed.utils.logger.setLevel(logging.ERROR)  # it warns about what is intended, e.g. torch's own optimizer
    backend = "nccl" if accelerator.device.type == "cuda" else "gloo"
    if not torch.distributed.is_initialized():
        torch.distributed.init_process_group(backend, store=torch.distributed.HashStore(), rank=0, world_size=1)
    os.environ.setdefault("LOCAL_RANK", str(accelerator.local_process_index))
    deepspeed.init_distributed(dist_backend=backend, auto_mpi_discovery=False, verbose=False)
    set_group_timeout(deepspeed.utils.groups, TIMEOUT)
