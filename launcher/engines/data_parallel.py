"""Plain data parallelism (DDP): every rank holds the whole model and optimizer state.

DDP all-reduces the gradients itself, while `backward` runs in the last micro-batch of a step. `micro_batch` keeps it
from doing so in the others.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext

import torch
import torch.distributed
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from torch import Tensor, nn
from torch.distributed import GradBucket
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.futures import Future
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from launcher.checkpoints.checkpoint import CheckpointReader, TensorShard
from launcher.engines.base import WEIGHTS, Engine, optimizer_kinds, swapped_in
from launcher.engines.optimizer import EMA, adam_step, make_optimizer, set_lr, set_update_count
from recipes.errors import UserError
from recipes.schema import Recipe


class DataParallel(Engine):
    """DDP through Accelerate, which provides devices, processes, autocast and, for fp16, the loss scale."""

    title = "DDP"
    syncs_on_last_micro_batch_only = True
    optimizer: AcceleratedOptimizer

    def __init__(self, recipe: Recipe, model: nn.Module, accelerator: Accelerator):
        # Convolutions on a GPU are fastest in channels last, the layout in which images arrive. ZeRO cannot use it,
        # because it concatenates parameters in row-major order.
        super().__init__(recipe, model.to(memory_format=torch.channels_last), accelerator)
        self.model = accelerator.prepare_model(self.module)
        self._bucket_norms: list[Tensor] = []  # of this rank's gradient in the step so far, by bucket of DDP
        if isinstance(self.model, DistributedDataParallel):
            self.model.register_comm_hook(self._bucket_norms, _measure_and_all_reduce)
        optimizer = make_optimizer(self.module, recipe)
        # If this attribute is set, torch's GradScaler calls `step` even when a gradient has overflowed, and the kernels
        # then leave the weights unchanged. But EMA and `updates` would change, because nothing reports the dropped
        # step, and SGD's first momentum would be uninitialized memory. Without the attribute, GradScaler does not call
        # `step`. For fp16, that costs one wait for the GPU per optimizer step.
        vars(optimizer)["_step_supports_amp_scaling"] = False
        self.optimizer = accelerator.prepare_optimizer(optimizer)

    def warm_up_ddp_buckets(self, images: Tensor) -> None:
        """All-reduce a gradient of zero, after which DDP rearranges its buckets once and for all.

        With three or more ranks, the arrangement decides in which order gradients are added up. Without this, a resumed
        run would use the initial arrangement for one more step, and differ in the last bits from an uninterrupted one.
        """
        self.all_reduce_gradients(images)
        self.zero_grad()

    def all_reduce_gradients(self, images: Tensor) -> None:
        # The backward pass of a zero loss adds nothing to the gradients, and makes DDP all-reduce them.
        if self.model is not self.module:
            self.accelerator.backward(self.model(images).float().sum() * 0.0)

    def zero_grad(self) -> None:
        # DDP's gradients are views of its buckets, which stay allocated. New gradient tensors would take the memory
        # twice.
        self.optimizer.zero_grad(set_to_none=self.model is self.module)
        self._bucket_norms.clear()

    def micro_batch(self, last_of_step: bool) -> AbstractContextManager[None]:
        return nullcontext() if last_of_step else self.accelerator.no_sync(self.model)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def scaled(self, loss: Tensor) -> Tensor:
        scaler = self.accelerator.scaler
        return loss if scaler is None else scaler.scale(loss)

    def local_gradient_square(self) -> Tensor:
        norm = torch.stack(self._bucket_norms).norm() if self._bucket_norms else self._norm()
        if self.accelerator.scaler is not None:
            norm = norm / self.accelerator.scaler.scale(torch.ones_like(norm))
        return norm.double().square()

    def _norm(self) -> Tensor:
        """Return the norm of the accumulated gradient, which is scaled in fp16, a float32 scalar on the device."""
        return get_total_norm(parameter.grad for parameter in self.names if parameter.grad is not None)

    def apply_gradient(self, lr: float) -> bool:
        set_lr(self.optimizer, lr)
        if self.accelerator.scaler is not None:
            self.accelerator.scaler.unscale_(self.optimizer.optimizer)
        self.gradient_norm = self._norm()
        if self.recipe.optimizer.clip_grad is not None:
            clip_grads_with_norm_(self.names, self.recipe.optimizer.clip_grad, self.gradient_norm)
        self.optimizer.step()
        self.zero_grad()
        return not self.optimizer.step_was_skipped

    def close(self) -> None:
        """Do nothing: Accelerate ends the process group."""

    def _ema_parameters(self) -> AbstractContextManager[None]:
        averages = [(parameter, self.optimizer.state.get(parameter, {}).get(EMA)) for parameter in self.names]
        return swapped_in([(parameter, average) for parameter, average in averages if average is not None])

    def _parameter_state(self) -> Iterator[TensorShard]:
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        total, before = sum(parameter.numel() for parameter in self.names), 0
        for parameter, name in self.names.items():
            writer = before * world // total  # each rank writes consecutive parameters of about the same total size
            before += parameter.numel()
            if writer != rank:
                continue
            yield TensorShard(WEIGHTS, name, parameter)
            for kind, value in self.optimizer.state.get(parameter, {}).items():
                if value is None or kind == "step":
                    continue
                if not isinstance(value, Tensor) or value.shape != parameter.shape:
                    raise UserError(
                        f"the optimizer keeps {kind!r} for parameter {name}, which no checkpoint can hold: its state "
                        f"may be tensors of the parameter's shape and `step`, the number of updates"
                    )
                yield TensorShard(kind, name, value)

    def scalars(self) -> dict[str, float]:
        scaler = self.accelerator.scaler
        if scaler is None:
            return super().scalars()
        return super().scalars() | {
            "loss_scale": scaler.get_scale(),
            "good_steps": scaler.state_dict()["_growth_tracker"],
        }

    def _load_optimizer_state(self, saved: CheckpointReader) -> None:
        kinds = optimizer_kinds(saved)
        for parameter, name in self.names.items():
            if not parameter.requires_grad:
                continue
            # In the parameter's memory format, because the fused update walks over all tensors in memory order.
            state = {
                kind: torch.empty_like(parameter, dtype=torch.float32).copy_(saved.tensor(kind, name)) for kind in kinds
            }
            if "exp_avg" in state or self.recipe.code.optimizer:
                # The step is not saved: it equals the number of updates.
                state["step"] = adam_step(self.optimizer, self.updates, parameter.device)
            self.optimizer.state[parameter].clear()
            self.optimizer.state[parameter].update(state)
        set_update_count(self.optimizer.optimizer, self.updates)
        scaler = self.accelerator.scaler
        if scaler is not None and "loss_scale" in saved.scalars:
            numbers = {"scale": saved.scalars["loss_scale"], "_growth_tracker": int(saved.scalars["good_steps"])}
            scaler.load_state_dict(scaler.state_dict() | numbers)


def _measure_and_all_reduce(norms: list[Tensor], bucket: GradBucket) -> Future[Tensor]:
    """Do what DDP does with a bucket of gradients without a hook, and append the norm of this rank's own to `norms`."""
    norms.append(get_total_norm(bucket.gradients()))  # by parameter, because one long float32 sum is less exact
    assert torch.distributed.group.WORLD is not None  # DDP has connected the ranks
    future: Future[Tensor] = allreduce_hook(torch.distributed.group.WORLD, bucket)
    return future
