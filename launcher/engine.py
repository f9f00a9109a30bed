"""The engine: a model, its optimizer and the processes that train it, through Accelerate.

It knows how to take one micro-batch's gradient, how to update, and what its state is, tensor by tensor under the names of
the model. What is trained on, and when, is the loop's.
"""

import contextlib
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs
from torch import Tensor, nn

from launcher.optimizer import EMA, make_optimizer, set_lr
from recipes.errors import UserError
from recipes.schema import Recipe

WEIGHTS, BUFFERS, BUFFERS_EMA = "weights", "buffers", "buffers_ema"


def make_accelerator(recipe: Recipe, tracking: Path | None = None) -> Accelerator:
    """Return the Accelerator of this process: its device, its peers and the precision.

    Raises:
        UserError: the precision cannot be had on this device, or fewer processes found each other than were started.
    """
    # Accelerate asks for the successor of an option that does not do the same yet; DDP's strides differ only in name.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides", category=UserWarning)
    on_gpu = torch.cuda.is_available()
    if recipe.engine.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
    accelerator = Accelerator(
        cpu=not on_gpu,
        mixed_precision=_mixed_precision(recipe.engine.precision, on_gpu),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        log_with="tensorboard" if tracking else None,
        project_dir=tracking,
    )
    started = int(os.environ.get("WORLD_SIZE", 1))
    if accelerator.num_processes != started:
        raise UserError(f"{started} processes were started but they do not see each other: start with `bigbatch train --procs {started}`")
    return accelerator


def _mixed_precision(wanted: str, on_gpu: bool) -> str:
    if wanted == "auto":
        return "bf16" if on_gpu and torch.cuda.is_bf16_supported() else "no"
    if wanted == "fp16" and not on_gpu:
        raise UserError("engine.precision=fp16 needs a GPU: use engine.precision=float32 or bf16 here")
    return "no" if wanted == "float32" else wanted


class Engine:
    """Data-parallel training of one model: every process holds all of it (DDP) and a share of the batch."""

    def __init__(self, recipe: Recipe, model: nn.Module, accelerator: Accelerator):
        self.recipe = recipe
        self.accelerator = accelerator
        self.module = model.to(accelerator.device)
        self.model = accelerator.prepare_model(self.module)
        self.optimizer = accelerator.prepare_optimizer(make_optimizer(self.module, recipe))
        self.names = {parameter: name for name, parameter in self.module.named_parameters()}
        averaged = recipe.ema.decay is not None
        self.averaged_buffers = {name: b.clone() for name, b in self._running_averages()} if averaged else {}
        self.updates = 0

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    def loss(self, losses: Tensor) -> Tensor:
        """The contribution of a micro-batch to the loss of the step: sum of the weighted losses / global batch.

        Float32. DDP takes the mean of the processes' gradients, so their number is multiplied in.
        """
        return losses.sum() * (self.accelerator.num_processes / self.recipe.batch.global_)

    def settle_gradient_exchange(self, images: Tensor) -> None:
        """Let DDP do its first gradient exchange, with a gradient of zero, so that all later ones are alike.

        After its first exchange DDP arranges its buckets anew, and with three or more processes the arrangement decides in
        which order gradients are added up. A run that resumes would start with the first arrangement again, and differ in the
        last bits from one that was not interrupted.

        Args:
            images: any images of a micro-batch's shape, float32 ``[n, 3, size, size]`` on the device.
        """
        if self.model is not self.module:
            self.accelerator.backward(self.model(images).float().sum() * 0.0)
            self.optimizer.zero_grad()

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` to that of the step."""
        self.accelerator.backward(loss)

    def micro_batch(self, last_of_step: bool):
        """The context of a forward and backward pass: without gradient exchange unless it is the step's last."""
        return contextlib.nullcontext() if last_of_step else self.accelerator.no_sync(self.model)

    def update(self, lr: float) -> None:
        """Apply the accumulated gradient once, average the weights, and forget the gradient."""
        set_lr(self.optimizer, lr)
        if self.recipe.optimizer.clip_grad is not None:
            self.accelerator.clip_grad_norm_(self.module.parameters(), self.recipe.optimizer.clip_grad)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.updates += not self.optimizer.step_was_skipped
        for name, buffer in self._running_averages() if self.averaged_buffers else ():
            self.averaged_buffers[name].lerp_(buffer, 1 - self.recipe.ema.decay)

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, on each of them."""
        return self.accelerator.reduce(tensor, reduction="sum")

    @contextlib.contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside, the model has the averaged weights."""
        pairs = [(p, self.optimizer.state[p][EMA]) for p in self.names if EMA in self.optimizer.state[p]]
        pairs += [(buffer, self.averaged_buffers[name]) for name, buffer in self._running_averages()]
        raw = [own.detach().clone() for own, _ in pairs]
        with torch.no_grad():
            for own, averaged in pairs:
                own.copy_(averaged)
            try:
                yield
            finally:
                for (own, _), value in zip(pairs, raw):
                    own.copy_(value)

    def state(self) -> Iterator[tuple[str, str, Tensor]]:
        """This process's part of the state as (kind, name, tensor): every tensor is yielded by exactly one process.

        Kinds: `weights`, `buffers`, `buffers_ema`, and the optimizer's own (`exp_avg`, `exp_avg_sq`, `ema`, ...).
        """
        world, rank = self.accelerator.num_processes, self.accelerator.process_index
        for number, (parameter, name) in enumerate(self.names.items()):
            if number % world == rank:
                yield WEIGHTS, name, parameter.detach()
                for kind, value in self.optimizer.state[parameter].items():
                    if value.shape == parameter.shape and kind != "step":
                        yield kind, name, value
        if rank == 0:
            yield from ((BUFFERS, name, buffer) for name, buffer in self._saved_buffers())
            yield from ((BUFFERS_EMA, name, buffer) for name, buffer in self.averaged_buffers.items())

    def load_state(self, read: dict[str, dict[str, Tensor]], updates: int) -> None:
        """Take over a saved state: tensors by kind and name, as `state` yields them over all processes."""
        device = self.accelerator.device
        self.updates = updates
        optimizer_kinds = read.keys() - {WEIGHTS, BUFFERS, BUFFERS_EMA}
        with torch.no_grad():
            for parameter, name in self.names.items():
                parameter.copy_(read[WEIGHTS][name])
                state = {kind: read[kind][name].to(device, copy=True) for kind in optimizer_kinds}
                if state and "exp_avg" in state:
                    state["step"] = torch.tensor(float(updates), device=device)
                self.optimizer.state[parameter].clear()
                self.optimizer.state[parameter].update(state)
            for name, buffer in self._saved_buffers():
                buffer.copy_(read[BUFFERS][name])
            for name, buffer in self.averaged_buffers.items():
                buffer.copy_(read[BUFFERS_EMA][name])

    def _saved_buffers(self) -> list[tuple[str, Tensor]]:
        persistent = self.module.state_dict().keys()
        return [(name, buffer) for name, buffer in self.module.named_buffers() if name in persistent]

    def _running_averages(self) -> list[tuple[str, Tensor]]:
        return [(name, buffer) for name, buffer in self._saved_buffers() if name.endswith(("running_mean", "running_var"))]
