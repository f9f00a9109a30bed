"""The engine: a model, its optimizer, and the processes that train it.

An engine accumulates the gradients of micro-batches, updates the weights, and returns its state tensor by tensor under
the model's parameter names. The training loop decides what to train on and when to update.
`launcher.engines.data_parallel` keeps the whole state on every rank (DDP), `launcher.engines.zero` shards it.
"""

import math
import os
import warnings
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager

import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin, InitProcessGroupKwargs
from torch import Tensor, nn

from launcher.checkpoints.checkpoint import CheckpointReader, TensorShard
from launcher.engines.arithmetic import set_arithmetic
from launcher.engines.connection import TIMEOUT
from launcher.engines.disk_offload import check_disk_offload
from launcher.engines.freed_memory import keep_freed_memory
from launcher.engines.optimizer import set_ema_decay, set_weight_decay
from launcher.engines.rank_gpus import check_each_rank_has_a_gpu, use_gpu_of_rank
from launcher.world import this_process
from recipes.errors import UserError
from recipes.schema import Recipe

WEIGHTS, BUFFERS, BUFFERS_EMA = "weights", "buffers", "buffers_ema"


def make_accelerator(recipe: Recipe) -> Accelerator:
    """Return the Accelerator of this process: its device, its peers and the precision.

    Raises:
        UserError: this machine does not support the precision or the offload, not all started processes have connected,
            or they have not each a GPU of their own.
    """
    check_disk_offload(recipe)
    # The option that Accelerate recommends instead does not do the same yet. Accelerate and DeepSpeed call collectives
    # by their former names. DDP warns about strides of dimensions of size one, which have no effect.
    warnings.filterwarnings("ignore", message="`broadcast_buffers` is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message="`torch.distributed.* is deprecated", category=FutureWarning)
    warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides", category=UserWarning)
    on_gpu = torch.cuda.is_available()
    if not on_gpu:
        keep_freed_memory()
    set_arithmetic(recipe.engine.deterministic)
    world = this_process()
    if world.is_launched:
        use_gpu_of_rank()
        os.environ.setdefault("LOCAL_WORLD_SIZE", str(world.local_size))  # Accelerate would set it to 1
    # The Zero engine calls DeepSpeed itself; Accelerate would wrap the model a second time.
    os.environ["ACCELERATE_USE_DEEPSPEED"] = "false"
    accelerator = Accelerator(
        cpu=not on_gpu,
        mixed_precision=_mixed_precision(recipe.engine.precision, on_gpu),
        kwargs_handlers=[
            DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True),
            InitProcessGroupKwargs(timeout=TIMEOUT),
        ],
        # Set here, because accelerate's config would otherwise set it, and Accelerate divides every loss by it.
        gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
    )
    if accelerator.num_processes != world.size:  # every process would train on the whole batch
        raise UserError(
            f"{world.size} processes were started but they did not connect to each other: start with "
            f"`bigbatch train --procs {world.size}`"
        )
    check_each_rank_has_a_gpu(world)
    return accelerator


def _mixed_precision(wanted: str, on_gpu: bool) -> str:
    """Return Accelerate's name of the recipe's precision: "no", "bf16" or "fp16"."""
    if wanted == "auto":
        wanted = "bf16" if on_gpu and torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    if wanted == "fp16" and not on_gpu:
        raise UserError("engine.precision=fp16 needs a GPU: use engine.precision=float32 or bf16 here")
    return "no" if wanted == "float32" else wanted


class Engine(ABC):
    """Trains one model on all ranks, each of which processes its part of every batch.

    Attributes:
        title: for logs, e.g. "ZeRO-2, offloaded to the CPU".
        syncs_on_last_micro_batch_only: whether only the last backward pass of a step communicates with other ranks.
        names: the name in the model of every parameter.
        shapes: the shape of every parameter, by name.
        ema_buffers: the EMA of BatchNorm's running statistics, by buffer name; empty without EMA.
        updates: how many optimizer steps changed the weights; steps whose fp16 gradient overflowed do not count.
        gradient_norm: the norm of the global batch's gradient in the last step, before clipping, a scalar on any
            device. It is not finite before the first step and where an fp16 gradient has overflowed.
    """

    optimizer: torch.optim.Optimizer
    title: str
    syncs_on_last_micro_batch_only = False

    def __init__(self, recipe: Recipe, model: nn.Module, accelerator: Accelerator):
        self.recipe = recipe
        self.accelerator = accelerator
        self.module = model.to(accelerator.device)
        self.names = {parameter: name for name, parameter in self.module.named_parameters()}
        self.shapes = {name: list(parameter.shape) for parameter, name in self.names.items()}
        # Their owners are looked up once, but the tensors each time: a library may convert a module's buffers.
        bn_stats = [n for n, _ in saved_buffers(self.module) if n.endswith(("running_mean", "running_var"))]
        self._owners_of_bn_running_stats = {n: self.module.get_submodule(n.rpartition(".")[0]) for n in bn_stats}
        has_ema = recipe.ema.decay is not None
        self.ema_buffers = {name: buffer.clone() for name, buffer in self._bn_running_stats()} if has_ema else {}
        self.updates = 0
        self.gradient_norm = torch.tensor(math.nan)

    @property
    def is_main(self) -> bool:
        return bool(self.accelerator.is_main_process)

    @property
    def micro_batch_weight(self) -> float:
        """The factor that turns a micro-batch's summed losses into its part of the global batch's mean loss.

        DDP and ZeRO average gradients over ranks, so the factor contains the number of ranks.
        """
        return self.accelerator.num_processes / self.recipe.batch.global_

    def sum(self, tensor: Tensor) -> Tensor:
        """Return the sum of a tensor over all ranks, on each of them."""
        total: Tensor = self.accelerator.reduce(tensor, reduction="sum")
        return total

    @abstractmethod
    def warm_up_ddp_buckets(self, images: Tensor) -> None:
        """All-reduce a gradient of zero if the first all-reduce of an engine differs from all later ones.

        Args:
            images: any images of a micro-batch's shape, float32 ``[n, 3, size, size]`` on the device.
        """

    @abstractmethod
    def micro_batch(self, last_of_step: bool) -> AbstractContextManager[None]:
        """Return the context of one forward and backward pass; the last one of a step all-reduces the gradients."""

    def all_reduce_gradients(self, images: Tensor) -> None:
        """All-reduce the accumulated gradient of a step whose backward passes did not communicate.

        Args:
            images: as in `warm_up_ddp_buckets`.

        Raises:
            NotImplementedError: the engine communicates in every pass (`syncs_on_last_micro_batch_only` is False).
        """
        raise NotImplementedError

    def zero_grad(self) -> None:
        """Discard the accumulated gradient. Engines without `all_reduce_gradients` do not implement it."""
        raise NotImplementedError

    @abstractmethod
    def forward(self, images: Tensor) -> Tensor:
        """Return logits ``[n, classes]`` of images ``[n, 3, size, size]``, computed in the engine's precision."""

    @abstractmethod
    def backward(self, loss: Tensor) -> None:
        """Add the gradient of `loss`, a scalar on the device, to the accumulated gradient."""

    def scaled(self, loss: Tensor) -> Tensor:
        """Return `loss` times the loss scale of fp16, as `backward` differentiates it."""
        return loss

    def local_gradient_square(self) -> Tensor:
        """Return the squared norm of this rank's gradient before an all-reduce, a float64 scalar on the device.

        With several ranks, call it between the all-reduce of a step and its update. The gradient is then that of the
        rank's whole share. A single rank never all-reduces: its gradient is the one accumulated so far.

        Raises:
            NotImplementedError: no rank of the engine has a whole gradient of its own.
        """
        raise NotImplementedError

    @abstractmethod
    def apply_gradient(self, lr: float) -> bool:
        """Update weights and EMA with the accumulated gradient at that learning rate, and discard the gradient.

        It sets `gradient_norm` and returns whether there was an update: an fp16 gradient that overflows is dropped, and
        the loss scale is halved.
        """

    @property
    def next_ema_decay(self) -> float | None:
        """The decay of the EMA in the next update; None without EMA."""
        ema = self.recipe.ema
        return None if ema.decay is None else ema.decay_of_update(self.updates + 1)

    def update(self, lr: float, weight_decay: float | None = None) -> None:
        """End an optimizer step at learning rate `lr`. A dropped gradient changes no weights, EMA or `updates`.

        Args:
            lr: before layer-wise decay.
            weight_decay: of the parameters that have weight decay; None: as in the step before.
        """
        if weight_decay is not None:
            set_weight_decay(self.optimizer, weight_decay)
        decay = self.next_ema_decay
        if decay is not None:
            set_ema_decay(self.optimizer, decay)
        if not self.apply_gradient(lr):
            return
        self.updates += 1
        if decay is not None and self.ema_buffers:
            bn_running_stats = [buffer for _, buffer in self._bn_running_stats()]
            # All with one launch on a GPU.
            torch._foreach_lerp_(list(self.ema_buffers.values()), bn_running_stats, 1 - decay)

    @contextmanager
    def ema_weights(self) -> Iterator[None]:
        """Give the model the EMA weights inside the block. All ranks enter and leave together."""
        buffers = [(buffer, self.ema_buffers[name]) for name, buffer in self._bn_running_stats()]
        with torch.no_grad(), swapped_in(buffers), self._ema_parameters():
            yield

    @abstractmethod
    def _ema_parameters(self) -> AbstractContextManager[None]:
        """Give the parameters their EMA values inside the block."""

    def state(self) -> Iterator[TensorShard]:
        """Yield this rank's part of the state. Together, the ranks yield every element of every tensor exactly once.

        Kinds: `weights`, `buffers`, `buffers_ema`, and the optimizer's own (`exp_avg`, `exp_avg_sq`, `ema`, ...), all
        float32 except integer buffers.
        """
        yield from self._parameter_state()
        if self.is_main:
            yield from (TensorShard(BUFFERS, name, buffer) for name, buffer in saved_buffers(self.module))
            yield from (TensorShard(BUFFERS_EMA, name, buffer) for name, buffer in self.ema_buffers.items())

    @abstractmethod
    def _parameter_state(self) -> Iterator[TensorShard]:
        """Yield this rank's part of the weights and of the optimizer's state."""

    def scalars(self) -> dict[str, float]:
        """Return the parts of the state that are single numbers; they are the same on every rank."""
        return {"updates": self.updates}

    def load_state(self, saved: CheckpointReader) -> None:
        """Load the optimizer's state, the EMA and the scalars; `load_model` has loaded the weights before."""
        self.updates = int(saved.scalars["updates"])
        with torch.no_grad():
            self._load_optimizer_state(saved)
            for name, buffer in self.ema_buffers.items():
                buffer.copy_(saved.tensor(BUFFERS_EMA, name))

    @abstractmethod
    def _load_optimizer_state(self, saved: CheckpointReader) -> None:
        """Load this rank's part of the optimizer's state."""

    @abstractmethod
    def close(self) -> None:
        """Release hooks, buffers and process groups that would outlive this object."""

    def _bn_running_stats(self) -> list[tuple[str, Tensor]]:
        """Return BatchNorm's running means and variances by name; the EMA includes them as it includes the weights."""
        return [(n, getattr(owner, n.rpartition(".")[2])) for n, owner in self._owners_of_bn_running_stats.items()]


def load_model(model: nn.Module, saved: CheckpointReader) -> None:
    """Copy a checkpoint's weights and buffers into a model; called before an engine is made of the model."""
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(saved.tensor(WEIGHTS, name))
        for name, buffer in saved_buffers(model):
            buffer.copy_(saved.tensor(BUFFERS, name))


def saved_buffers(model: nn.Module) -> list[tuple[str, Tensor]]:
    """Return name and tensor of each buffer in the model's state dict."""
    persistent = model.state_dict(keep_vars=True).keys()
    return [(name, buffer) for name, buffer in model.named_buffers() if name in persistent]


def optimizer_kinds(saved: CheckpointReader) -> set[str]:
    """Return the kinds of tensors in a checkpoint that are the optimizer's."""
    return saved.kinds - {WEIGHTS, BUFFERS, BUFFERS_EMA}


@contextmanager
def swapped_in(pairs: list[tuple[Tensor, Tensor]]) -> Iterator[None]:
    """Give the first tensor of each pair the values of the second inside the block."""
    kept = [own.detach().clone() for own, _ in pairs]
    for own, other in pairs:
        own.copy_(other)
    try:
        yield
    finally:
        for (own, _), value in zip(pairs, kept):
            own.copy_(value)
