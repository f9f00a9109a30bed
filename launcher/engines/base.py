"""The engine: a model, its optimizer and the processes that train it.

It knows how to take one micro-batch's gradient, how to update, and what its state is, tensor by tensor under the names of
the model. What is trained on, and when, is the loop's. `launcher.engines.data_parallel` holds all of the model in every process,
`launcher.engines.zero` shares it out.
"""

import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin
from torch import Tensor, nn

from launcher.checkpoints.checkpoint import CheckpointReader, TensorShard
from launcher.world import this_process
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
        torch.utils.deterministic.fill_uninitialized_memory = (
            False  # finds bugs, decides no result, and writes every buffer twice
        )
    else:
        torch.backends.cudnn.benchmark = True  # the fastest of the kernels there are for each convolution
    world = this_process()
    if world.is_launched:
        os.environ.setdefault("LOCAL_WORLD_SIZE", str(world.local_size))  # Accelerate would set it to 1
    # The Zero engine calls DeepSpeed itself; Accelerate would wrap the model a second time.
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"
    accelerator = Accelerator(
        cpu=not on_gpu,
        mixed_precision=_mixed_precision(recipe.engine.precision, on_gpu),
        kwargs_handlers=[DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)],
        # Given here, because accelerate's config would otherwise set it, and divide every loss by it.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        log_with="tensorboard" if tracking else None,
        project_dir=tracking,
    )
    started = world.size
    if accelerator.num_processes != started:
        raise UserError(
            f"{started} processes were started but they do not see each other: start with `bigbatch train --procs {started}`"
        )
    return accelerator


def _mixed_precision(wanted: str, on_gpu: bool) -> str:
    if wanted == "auto":
        wanted = "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if wanted == "fp16" and not on_gpu:
        raise UserError("engine.precision=fp16 needs a GPU: use engine.precision=float32 or bf16 here")
    return "no" if wanted == "float32" else wanted


class Engine(ABC):
    """Trains one model on all processes, each of which is given its share of every batch."""

    optimizer: torch.optim.Optimizer
    title: str  # e.g. "ZeRO-2, off-loaded to the CPU"
    syncs_on_last_micro_batch_only = False  # all but a step's last pass leave the other processes alone

    def __init__(self, recipe: Recipe, model: nn.Module, accelerator: Accelerator):
        self.recipe = recipe
        self.accelerator = accelerator
        self.module = model.to(accelerator.device)
        self.names = {parameter: name for name, parameter in self.module.named_parameters()}
        self.shapes = {name: list(parameter.shape) for parameter, name in self.names.items()}
        averaged = recipe.ema.decay is not None
        self.averaged_buffers = {name: b.clone() for name, b in self._running_averages()} if averaged else {}
        self.updates = 0

    @property
    def is_main(self) -> bool:
        return self.accelerator.is_main_process

    @property
    def micro_batch_weight(self) -> float:
        """Factor on the summed losses of a micro-batch that makes the step's gradient that of the mean over the global batch.

        The processes' gradients are averaged, so their number is multiplied in.
        """
        return self.accelerator.num_processes / self.recipe.batch.global_

    def sum(self, tensor: Tensor) -> Tensor:
        """The sum of a tensor over all processes, on each of them."""
        return self.accelerator.reduce(tensor, reduction="sum")

    @abstractmethod
    def warm_up_ddp_buckets(self, images: Tensor) -> None:
        """Do once what the first gradient exchange does differently, with a gradient of zero, so that all later ones are alike.

        Args:
            images: any images of a micro-batch's shape, float32 ``[n, 3, size, size]`` on the device.
        """

    @abstractmethod
    def micro_batch(self, last_of_step: bool) -> AbstractContextManager:
        """The context of a forward and backward pass; gradients are exchanged in the step's last."""

    def all_reduce_gradients(self, images: Tensor) -> None:
        """Exchange the gradient of a step that was passed without an exchange, adding zero to it.

        Args:
            images: as of `warm_up_ddp_buckets`.

        Raises:
            NotImplementedError: an engine that does not exchange `syncs_on_last_micro_batch_only`.
        """
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Forget the gradient of the step so far; for the same engines."""
        raise NotImplementedError

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Logits ``[n, classes]`` of images ``[n, 3, size, size]``, at the engine's precision."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss` to that of the step."""

    @abstractmethod
    def apply_gradient(self, lr: float) -> bool:
        """Update the weights and their average with the accumulated gradient at that learning rate, and forget the gradient.

        Returns whether there was an update: with fp16, a gradient that overflows is dropped and the loss scale lowered.
        """

    def update(self, lr: float) -> None:
        """End an optimizer step; `updates` counts those that changed the weights."""
        if not self.apply_gradient(lr):
            return
        self.updates += 1
        for name, buffer in self._running_averages() if self.averaged_buffers else ():
            self.averaged_buffers[name].lerp_(buffer, 1 - self.recipe.ema.decay)

    @contextmanager
    def averaged_weights(self) -> Iterator[None]:
        """Inside, the model has the averaged weights; all processes enter and leave together."""
        buffers = [(buffer, self.averaged_buffers[name]) for name, buffer in self._running_averages()]
        with torch.no_grad(), swapped_in(buffers), self._averaged_parameters():
            yield

    @abstractmethod
    def _averaged_parameters(self) -> AbstractContextManager:
        """Inside, the parameters have their averaged values."""

    def state(self) -> Iterator[TensorShard]:
        """This process's part of the state: over all processes, every element of every tensor is yielded exactly once.

        Kinds: `weights`, `buffers`, `buffers_ema`, and the optimizer's own (`exp_avg`, `exp_avg_sq`, `ema`, ...), all float32
        (integer buffers excepted).
        """
        yield from self._parameter_state()
        if self.is_main:
            yield from (TensorShard(BUFFERS, name, buffer) for name, buffer in saved_buffers(self.module))
            yield from (TensorShard(BUFFERS_EMA, name, buffer) for name, buffer in self.averaged_buffers.items())

    @abstractmethod
    def _parameter_state(self) -> Iterator[TensorShard]:
        """This process's part of the weights and of the optimizer's state."""

    def scalars(self) -> dict[str, float]:
        """What else belongs to the state: a few numbers, the same in every process."""
        return {"updates": self.updates}

    def load_state(self, saved: CheckpointReader) -> None:
        """Take over the optimizer's state, the averages and the numbers of a checkpoint; the weights are in the model already."""
        self.updates = int(saved.scalars["updates"])
        with torch.no_grad():
            self._load_optimizer_state(saved)
            for name, buffer in self.averaged_buffers.items():
                buffer.copy_(saved.tensor(BUFFERS_EMA, name))

    @abstractmethod
    def _load_optimizer_state(self, saved: CheckpointReader) -> None:
        """Take over this process's part of the optimizer's state."""

    def close(self) -> None:
        """Let go of what outlives the object."""

    def _running_averages(self) -> list[tuple[str, Tensor]]:
        return [
            (name, buffer)
            for name, buffer in saved_buffers(self.module)
            if name.endswith(("running_mean", "running_var"))
        ]


def load_model(model: nn.Module, saved: CheckpointReader) -> None:
    """Copy a checkpoint's weights and buffers into a model, before an engine takes it."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(saved.tensor(WEIGHTS, name))
        for name, buffer in saved_buffers(model):
            buffer.copy_(saved.tensor(BUFFERS, name))


def saved_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """The buffers that belong to the model's state."""
    persistent = model.state_dict(keep_vars=True).keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in persistent]


def optimizer_kinds(saved: CheckpointReader) -> set[str]:
    """The kinds of tensors in a checkpoint that are the optimizer's."""
    return saved.kinds - {WEIGHTS, BUFFERS, BUFFERS_EMA}


@contextmanager
def swapped_in(pairs: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Inside, the first tensor of each pair has the values of the second."""
    kept = [own.detach().clone() for own, _ in pairs]
    for own, other in pairs:
        own.copy_(other)
    try:
        yield
    finally:
        for (own, _), value in zip(pairs, kept):
            own.copy_(value)
