"""Plain data parallelism (DDP): every process holds the whole model and optimizer state, and a share of the batch."""

import contextlib
from collections.abc import Iterator

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from launcher.checkpoints.checkpoint import CheckpointReader, TensorShard
from launcher.engines.base import WEIGHTS, Engine, optimizer_kinds, swapped_in
from launcher.engines.optimizer import EMA, make_optimizer, set_lr
from recipes.schema import Recipe


class DataParallel(Engine):
    """Through Accelerate: devices, processes, mixed precision and, for fp16, the loss scale are its."""

    title = "DDP"
    syncs_on_last_micro_batch_only = True

    def __init__(self, recipe: Recipe, model: nn.Module, accelerator: Accelerator):
        # Channels last is what convolutions on a GPU are fastest with, and how images come. (ZeRO lays parameters end to end: it can't.)
        super().__init__(recipe, model.to(memory_format=torch.channels_last), accelerator)
        self.model = accelerator.prepare_model(self.module)
        self.optimizer = accelerator.prepare_optimizer(make_optimizer(self.module, recipe))

    def warm_up_ddp_buckets(self, images: Tensor) -> None:
        """After its first exchange DDP arranges its buckets anew, and with three or more processes the arrangement decides in
        which order gradients are added up. A run that resumes would start with the first arrangement again, and differ in the
        last bits from one that was not interrupted.
        """
        self.all_reduce_gradients(images)
        self.zero_grad()

    def all_reduce_gradients(self, images: Tensor) -> None:
        if self.model is not self.module:
            self.accelerator.backward(self.model(images).float().sum() * 0.0)

    def zero_grad(self) -> None:
        # DDP's gradients lie in its buckets, which stay; a gradient that were made anew would be there a second time.
        self.optimizer.zero_grad(set_to_none=self.model is self.module)

    def micro_batch(self, last_of_step: bool):
        return contextlib.nullcontext() if last_of_step else self.accelerator.no_sync(self.model)

    def forward(self, images: Tensor) -> Tensor:
        return self.model(images)

    def backward(self, loss: Tensor) -> None:
        self.accelerator.backward(loss)

    def apply_gradient(self, lr: float) -> bool:
        set_lr(self.optimizer, lr)
        if self.recipe.optimizer.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self.module.parameters(), self.recipe.optimizer.clip_grad)
        self.optimizer.step()
        self.zero_grad()
        return not self.optimizer.step_was_skipped

    def _averaged_parameters(self):
        return swapped_in([(p, self.optimizer.state[p][EMA]) for p in self.names if EMA in self.optimizer.state[p]])

    def _parameter_state(self) -> Iterator[TensorShard]:
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        total, before = sum(parameter.numel() for parameter in self.names), 0
        for parameter, name in self.names.items():
            writer = before * world // total  # consecutive parameters, about the same number of bytes for each process
            before += parameter.numel()
            if writer != rank:
                continue
            yield TensorShard(WEIGHTS, name, parameter)
            for kind, value in self.optimizer.state[parameter].items():
                if value is not None and value.shape == parameter.shape and kind != "step":
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
        device, kinds = self.accelerator.device, optimizer_kinds(saved)
        for parameter, name in self.names.items():
            # In the parameter's memory format: the fused update goes through all of them in the order of memory.
            state = {
                kind: torch.empty_like(parameter, dtype=torch.float32).copy_(saved.tensor(kind, name)) for kind in kinds
            }
            if "exp_avg" in state:
                state["step"] = torch.tensor(float(self.updates), device=device)
            self.optimizer.state[parameter].clear()
            self.optimizer.state[parameter].update(state)
        scaler = self.accelerator.scaler
        if scaler is not None and "loss_scale" in saved.scalars:
            numbers = {"scale": saved.scalars["loss_scale"], "_growth_tracker": int(saved.scalars["good_steps"])}
            scaler.load_state_dict(scaler.state_dict() | numbers)
