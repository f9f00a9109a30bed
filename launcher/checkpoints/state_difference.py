"""Where two training states differ: a checkpoint and another one, or a checkpoint and the state in memory."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from launcher.checkpoints.checkpoint import CheckpointReader, TensorShard

# The order in which a step changes the parts of the state; the optimizer's other tensors come between.
_WEIGHTS, _LAST = "weights", ("buffers", "ema", "buffers_ema")


@dataclass(frozen=True)
class TensorDifference:
    """One tensor, or a part of it, that differs between two states.

    Attributes:
        name: kind and name, e.g. "weights/stem.0.weight".
        elements: number of elements that differ.
        largest: the largest absolute difference.
    """

    name: str
    elements: int
    largest: float


def differences_to(saved: CheckpointReader, state: Iterable[TensorShard], absolute: float) -> list[TensorDifference]:
    """Return what differs between a checkpoint and shards of a state.

    Args:
        saved: the checkpoint.
        state: shards of all or of some tensors, on any device.
        absolute: the largest difference of weights that does not count; the optimizer's tensors are then left out. 0:
            every bit counts.
    """
    found = []
    for shard in state:
        kind, name, values, start = shard
        if absolute and kind != _WEIGHTS:
            continue
        own = values.detach().cpu()
        theirs = saved.tensor(kind, name) if start is None else saved.elements(kind, name, start, start + len(values))
        found += _difference(f"{kind}/{name}", own, theirs, absolute)
    return found


def checkpoint_differences(
    one: CheckpointReader, other: CheckpointReader, absolute: float
) -> Iterator[TensorDifference]:
    """Yield what differs between two checkpoints, the weights first; `absolute` as in `differences_to`.

    A tensor that only one of them has counts as different in all elements.
    """
    kinds = sorted(one.kinds | other.kinds, key=lambda kind: (kind != _WEIGHTS, kind in _LAST, kind))
    for kind in kinds if not absolute else [_WEIGHTS]:
        ours, theirs = one.tensors(kind), other.tensors(kind)
        for name, value in ours.items():
            yield from _difference(f"{kind}/{name}", value, theirs.get(name), absolute)
        yield from (
            TensorDifference(f"{kind}/{name}", value.numel(), float("nan"))
            for name, value in theirs.items()
            if name not in ours
        )


def first_in_order(found: list[TensorDifference]) -> TensorDifference:
    """Return a difference of the weights if there is one, else any: weights are what a user recognises."""
    return min(found, key=lambda one: not one.name.startswith(f"{_WEIGHTS}/"))


def _difference(name: str, one: Tensor, other: Tensor | None, absolute: float) -> list[TensorDifference]:
    if other is None or one.shape != other.shape:
        return [TensorDifference(name, one.numel(), float("nan"))]
    if torch.equal(one, other):
        return []
    gaps = (one.double() - other.double()).abs()
    different = ~(gaps <= absolute)  # NaN differs from everything
    count = int(different.sum())
    return [TensorDifference(name, count, float(gaps.max()))] if count else []
