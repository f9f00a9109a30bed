"""What a forward and backward pass keeps in memory, found by doing one with tensors that have shapes but no values.

Every operation of the recipe's own model runs, at its precision and with its stochastic depth, loss and autograd graph, on
torch's fake tensors; each storage is counted from the operation that makes it to the moment it is let go of. What no
tensor shows is not counted: workspaces inside a kernel and what the allocator cannot use for being in pieces.
"""

import weakref
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from models.build import checkpoint_activations
from models.prepared import prepare_model
from recipes.schema import Recipe

_DTYPES = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Autocast on a GPU computes these in float32; on the CPU, where the trace runs, it does not.
_FLOAT32_ON_A_GPU = ("layer_norm", "group_norm", "softmax.int", "log_softmax.int")


@dataclass(frozen=True)
class StepTrace:
    """One forward and backward pass of `micro_batch` images.

    `history` is the bytes in use after each storage was made, without the parameters and without the gradients that the step
    adds up, both of which are there throughout; `operations` is how many operations torch started.
    """

    micro_batch: int
    history: list[int]
    operations: int

    @property
    def peak(self) -> int:
        return max(self.history)


def trace_step(
    recipe: Recipe, classes: int, micro_batch: int, precision: str, checkpointing: bool, as_on_gpu: bool = True
) -> StepTrace:
    """Trace a forward and backward pass of the recipe's model.

    Args:
        micro_batch: images; with BatchNorm a multiple of the recipe's statistics batch.
        precision: "float32", "bf16" or "fp16".
        checkpointing: activations are computed again in the backward pass.
        as_on_gpu: with the operations that autocast on a GPU keeps in float32.

    Raises:
        UserError: the model cannot be built, or cannot checkpoint activations.
        Exception: whatever a model does whose operations depend on values.
    """
    with torch.device("meta"):
        prepared = prepare_model(recipe, classes)
    model = prepared.module.to(memory_format=torch.channels_last)  # as engines have it
    if checkpointing:
        checkpoint_activations(model)
    size = recipe.input.size
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu").train()
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        labels = torch.empty(micro_batch, dtype=torch.int64)
        with _Allocations(model) as allocations:
            pixels = torch.empty(micro_batch, 3, size, size, dtype=torch.uint8, memory_format=torch.channels_last)
            images = pixels.to(torch.float32)
            prepared.drop_path.use(torch.empty(len(prepared.drop_path.branches), micro_batch))
            with autocast_of_a_gpu() if as_on_gpu else nullcontext():
                with autocast_to(precision, "cpu"):
                    logits = model(images)
                _loss(logits, labels, recipe.loss.smoothing).backward()
    return StepTrace(micro_batch, allocations.history, allocations.operations)


def _loss(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """The shapes of `models.loss.mixed_cross_entropy`."""
    log_probabilities = F.log_softmax(logits.float(), dim=-1)
    likelihood = log_probabilities.gather(1, labels[:, None])[:, 0]
    return -((1 - smoothing) * likelihood + smoothing * log_probabilities.mean(dim=-1)).sum()


def autocast_to(precision: str, device: str) -> AbstractContextManager:
    """Inside, a kind of device ("cpu", "cuda") computes at "float32", "bf16" or "fp16" as far as autocast goes."""
    dtype = _DTYPES[precision]
    return nullcontext() if dtype is None else torch.autocast(device, dtype=dtype)


@contextmanager
def autocast_of_a_gpu() -> Iterator[None]:
    """Inside, autocast on the CPU keeps in float32 what it does on a GPU; also where activations are computed again."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name in _FLOAT32_ON_A_GPU:
            operation, _, overload = name.partition(".")
            original = getattr(getattr(torch.ops.aten, operation), overload or "default")
            library.impl(name, partial(_in_float32, original), "AutocastCPU")
        yield


def _in_float32(operation, *arguments, **options):
    with torch.autocast("cpu", enabled=False):
        return operation(*tree_map(_float32, arguments), **tree_map(_float32, options))


def _float32(value):
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


class _Allocations(TorchDispatchMode):
    """Adds up the storages that operations make and are let go of inside; those of the model and its gradients are not counted."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.now = self.operations = 0
        self.history: list[int] = []
        tensors = [*model.parameters(), *model.buffers(), *(parameter.grad for parameter in model.parameters())]
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in tensors)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        self.operations += function.namespace == "aten" and not function.is_view
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        self._known.add(storage)
        self.now += storage.nbytes()
        self.history.append(self.now)
        weakref.finalize(storage, partial(self._forget, storage.nbytes()))

    def _forget(self, count: int) -> None:
        self.now -= count
