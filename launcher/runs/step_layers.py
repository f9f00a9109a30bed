"""What a step records of itself, in the order in which it happens, to find the first part in which two steps differ."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from data.input_digest import INPUT_KINDS

_TITLES = {
    "samples": "sample order",
    "labels": "labels",
    "pixels": "pixels",
    "mixing": "mixing",
    "masks": "masks",
    "lr": "learning rate",
    "weight_decay": "weight decay",
    "ema_decay": "EMA decay",
    "loss": "forward (loss)",
    "gradient_norm": "backward (gradient norm)",
}
# Differences that rounding explains between cuts, engines or devices (docs/exactness.md): of the loss (relative) and of
# a weight (absolute). bf16 and fp16 round every activation.
_ROUNDING = {"float32": (1e-5, 1e-4)}
_MIXED_ROUNDING = (1e-2, 1e-2)
_ROUNDED = {"loss": 1, "gradient_norm": 10}  # layers that rounding reaches, and how much more than the loss


@dataclass(frozen=True)
class LayerDifference:
    """The first layer of a step in which two records differ.

    Attributes:
        step: its number, from 1.
        layer: e.g. "sample order", "pixels", "forward (loss)", or "update (weights)".
        first: what the first of the two records says.
        second: what the other one says.
    """

    step: int
    layer: str
    first: Any
    second: Any


def rounding_of(precision: str) -> tuple[float, float]:
    """Return the relative difference of a loss and the absolute one of a weight that rounding explains."""
    return _ROUNDING.get(precision, _MIXED_ROUNDING)


def first_difference(one: dict, other: dict, rounding: float = 0.0) -> LayerDifference | None:
    """Return the first layer in which two step events differ; None if they agree in all that both record.

    Args:
        rounding: relative difference of the loss that does not count; 0: every bit counts. A gradient's norm may
            differ ten times as much.
    """
    theirs = dict(_layers(other))
    for layer, value in _layers(one):
        if layer not in theirs or _agree(value, theirs[layer], rounding * _ROUNDED.get(layer, 0)):
            continue
        return LayerDifference(one["step"], _TITLES[layer], value, theirs[layer])
    return None


def common_layers(one: dict, other: dict) -> list[str]:
    """Return the titles of the layers that both step events record, in their order."""
    theirs = dict(_layers(other))
    return [_TITLES[layer] for layer, _ in _layers(one) if layer in theirs]


def _layers(event: dict) -> Iterator[tuple[str, Any]]:
    """Yield each recorded layer and its value; versions before 0.2.0 recorded the learning rate and the loss only."""
    if "inputs" in event:
        yield from zip(INPUT_KINDS, event["inputs"].split("-"))
    for layer in ("lr", "weight_decay", "ema_decay", "loss", "gradient_norm"):
        if layer in event:
            yield layer, event[layer]


def _agree(one: Any, other: Any, rounding: float) -> bool:
    if rounding and isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=rounding)
    return bool(one == other)
