"""What a forward and backward pass allocates and computes, traced on tensors that have shapes but no values.

Every operation of the recipe's model runs on torch's fake tensors: at the recipe's precision, with its stochastic
depth, loss and autograd graph. Each storage counts from the operation that makes it until it is freed. Memory that
belongs to no tensor is not counted, such as workspaces inside kernels and fragmentation of the allocator.
`operation_cost` says what is counted as the work of an operation.
"""

import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

from launcher.planning.operation_cost import OperationCost, operation_cost
from models.build import checkpoint_activations
from models.loss import image_losses
from models.prepared import prepare_model
from recipes.schema import Recipe

_DTYPES = {"float32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
# Autocast computes these operations in float32 on a GPU, but not on the CPU, where the trace runs.
_FLOAT32_ON_GPU = ("layer_norm", "group_norm", "softmax.int", "log_softmax.int")


@dataclass(frozen=True)
class StepTrace:
    """One forward and backward pass of `micro_batch` images.

    Attributes:
        history: bytes in use after each allocation, without parameters and accumulated gradients.
        operations: the cost of each operation that torch started, in order.
    """

    micro_batch: int
    history: list[int]
    operations: list[OperationCost]

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
        checkpointing: whether activations are recomputed in the backward pass.
        as_on_gpu: whether operations that autocast keeps in float32 on a GPU are kept so here.

    Raises:
        UserError: the model cannot be built, or does not support activation checkpointing.
        Exception: anything that a model raises whose operations depend on values.
    """
    with torch.device("meta"):
        prepared = prepare_model(recipe, classes)
    model = prepared.module.to(memory_format=torch.channels_last)  # as the DDP engine has it
    if checkpointing:
        checkpoint_activations(model)
    size = recipe.input.size
    with FakeTensorMode(allow_non_fake_inputs=True):
        model.to_empty(device="cpu").train()
        # The gradients exist beforehand, so that the trace shows a step that accumulates into them.
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter) if parameter.requires_grad else None
        labels, ones = torch.empty(micro_batch, dtype=torch.int64), torch.ones(micro_batch)
        with _Allocations(model) as allocations:
            pixels = torch.empty(micro_batch, 3, size, size, dtype=torch.uint8, memory_format=torch.channels_last)
            images = pixels.to(torch.float32)
            prepared.drop_path.use(torch.empty(len(prepared.drop_path.branches), micro_batch))
            with autocast_of_a_gpu() if as_on_gpu else nullcontext():
                with autocast_to(precision, "cpu"):
                    logits = model(images)
                image_losses(logits, labels, labels, ones, ones, recipe.loss).sum().backward()
    return StepTrace(micro_batch, allocations.history, allocations.operations)


def autocast_to(precision: str, device: str) -> AbstractContextManager:
    """Return the autocast context for "float32" (none), "bf16" or "fp16" on a type of device ("cpu", "cuda")."""
    dtype = _DTYPES[precision]
    return nullcontext() if dtype is None else torch.autocast(device, dtype=dtype)


@contextmanager
def autocast_of_a_gpu() -> Iterator[None]:
    """Make autocast on the CPU keep in float32 what it keeps on a GPU, also where activations are recomputed."""
    with torch.library._scoped_library("aten", "IMPL") as library:
        for name in _FLOAT32_ON_GPU:
            operation, _, overload = name.partition(".")
            original = getattr(getattr(torch.ops.aten, operation), overload or "default")
            library.impl(name, partial(_in_float32, original), "AutocastCPU")
        yield


def _in_float32(operation: Callable, *arguments: object, **options: object) -> object:
    with torch.autocast("cpu", enabled=False):
        return operation(*tree_map(_float32, arguments), **tree_map(_float32, options))


def _float32(value: object) -> object:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


class _Allocations(TorchDispatchMode):
    """Counts operations, and the storages that they allocate and free, without the model and its gradients."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.now = 0
        self.operations: list[OperationCost] = []
        self.history: list[int] = []
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        tensors: list[Tensor] = [*model.parameters(), *model.buffers(), *gradients]
        self._known = weakref.WeakSet(tensor.untyped_storage() for tensor in tensors)

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        if cost := operation_cost(function, args, kwargs or {}, result):
            self.operations.append(cost)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:  # a view, or an operation in place
            return
        self._known.add(storage)
        self.now += storage.nbytes()
        self.history.append(self.now)
        weakref.finalize(storage, partial(self._free, storage.nbytes()))

    def _free(self, count: int) -> None:
        self.now -= count
