"""Compares the class names of a trained model with those of shards, and reorders the model's outputs to match."""

import re
from collections.abc import Sequence
from enum import Enum

from torch import Tensor, nn

_SHOWN = 10  # names of a list that is shown whole
_SHOWN_OF_MANY = 5


class ClassMatch(Enum):
    """How the class names of trained weights relate to those of shards."""

    SAME = "the same names in the same order"
    REORDERED = "the same names in another order"
    UNNAMED = "one side has no names, or only numbers, so the order cannot be checked"
    DIFFERENT = "other names, or another number of them"


def match_classes(trained: Sequence[str] | None, wanted: Sequence[str]) -> ClassMatch:
    """Return how the class names of a model's outputs (None: not known) relate to those of the shards."""
    if trained is None:
        return ClassMatch.UNNAMED
    if list(trained) == list(wanted):
        return ClassMatch.SAME
    if len(trained) != len(wanted):
        return ClassMatch.DIFFERENT
    # Checked before numbers: folders named by numbers are sorted as text by one source and as numbers by another.
    if sorted(trained) == sorted(wanted) and len(set(trained)) == len(trained):
        return ClassMatch.REORDERED
    # Classes without names are called "0", "1", "2" in this order, e.g. in WebDataset shards of other tools.
    numbered = [_are_positions(names) for names in (trained, wanted)]
    if any(numbered):
        return ClassMatch.SAME if all(numbered) else ClassMatch.UNNAMED
    return ClassMatch.DIFFERENT


def reorder_head(
    weights: dict[str, Tensor], model: nn.Module, trained: Sequence[str], wanted: Sequence[str]
) -> dict[str, Tensor]:
    """Return the weights with the classifier's outputs reordered from the class order `trained` to `wanted`."""
    order = [list(trained).index(name) for name in wanted]
    return weights | {name: weights[name][order] for name in head_parameters(model) if name in weights}


def head_parameters(model: nn.Module) -> list[str]:
    """Return the names of the weights and biases of a timm model's classifier; distilled models have two."""
    layers = model.default_cfg["classifier"]  # type: ignore[index]  # timm's attribute, unknown to nn.Module's type
    layers = [layers] if isinstance(layers, str) else list(layers)
    own = model.state_dict()
    return [name for layer in layers for name in (f"{layer}.weight", f"{layer}.bias") if name in own]


def describe_classes(names: Sequence[str], other: Sequence[str]) -> str:
    """Return the number of classes and their names; of a long list, first those that the other list lacks."""
    if len(names) <= _SHOWN:
        listed = ", ".join(names)
    else:
        lacking = set(other)
        distinct = [name for name in names if name not in lacking] or list(names)
        listed = ", ".join(distinct[:_SHOWN_OF_MANY]) + ", …"
    printable = re.sub(r"[\x00-\x1f\x7f]", "?", listed)
    return f"{len(names):,} class{'es' if len(names) != 1 else ''} ({printable})"


def _are_positions(names: Sequence[str]) -> bool:
    return all(name.isdecimal() and int(name) == number for number, name in enumerate(names))
