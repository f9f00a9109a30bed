"""Which weight decay and which share of the learning rate each parameter gets, decided by its name and shape.

Layer-wise decay numbers the layers from the stem, 0, to the head; a parameter of layer ``l`` learns at
``decay ** (last - l)`` times the rate. ConvNeXt's numbering is that of its code: the blocks of the third stage in groups of
three, which gives S, B, L and XL the paper's 12 groups between stem and head. That code refuses T; here the same rule
runs on without a gap, so T (9 blocks in the third stage) has 6 groups, and any other depth works too: the steps on the
road from ResNet-50 (`models.roadmap`) are numbered by it.
"""

import re
from dataclasses import dataclass

from torch import nn

from recipes.errors import UserError
from recipes.sections import OptimizerSettings


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that share optimizer settings. `lr_scale` multiplies the scheduled learning rate."""

    names: tuple[str, ...]
    weight_decay: float
    lr_scale: float


def parameter_groups(model: nn.Module, settings: OptimizerSettings) -> list[ParameterGroup]:
    """Return the groups of all trainable parameters, from stem to head; every parameter is in exactly one.

    Biases and other 1-d parameters (norms, layer scale) get no weight decay, nor what the model itself excludes (Swin's
    relative position biases).

    Raises:
        UserError: layer-wise decay is asked of a model family whose layers are not numbered here.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = layer_of_parameters(model) if settings.layer_decay is not None else dict.fromkeys(shapes, 0)
    last = max(layers.values())
    undecayed = model.no_weight_decay() if hasattr(model, "no_weight_decay") else ()
    members: dict[tuple[int, bool], list[str]] = {}
    for name, shape in shapes.items():
        decays = len(shape) > 1 and not name.endswith(".bias") and name not in undecayed
        members.setdefault((layers[name], decays), []).append(name)
    return [
        ParameterGroup(
            names=tuple(names),
            weight_decay=settings.weight_decay if decays else 0.0,
            lr_scale=(settings.layer_decay or 1.0) ** (last - layer),
        )
        for (layer, decays), names in sorted(members.items())
    ]


def layer_of_parameters(model: nn.Module) -> dict[str, int]:
    """Return each parameter's layer number, 0 for the stem and the largest for the head.

    Raises:
        UserError: not a ConvNeXt, a step on the road to it, a ResNet, ResNeXt or Swin.
    """
    names = [name for name, _ in model.named_parameters()]
    if hasattr(model, "stages") and hasattr(model, "stem"):
        return {name: _convnext_layer(name, [len(stage.blocks) for stage in model.stages]) for name in names}
    if hasattr(model, "layer4"):
        depths = [len(getattr(model, f"layer{stage}")) for stage in range(1, 5)]
        return {name: _block_layer(name, depths, r"layer(\d)\.(\d+)\.", first_stage=1) for name in names}
    if hasattr(model, "patch_embed") and hasattr(model, "layers"):
        depths = [len(stage.blocks) for stage in model.layers]
        return {
            name: _block_layer(name, depths, r"layers\.(\d)\.(?:blocks\.(\d+)|downsample)\.", first_stage=0)
            for name in names
        }
    raise UserError(f"layer-wise decay is not defined for {type(model).__name__}: add optimizer.layer_decay=null")


def _convnext_layer(name: str, depths: list[int]) -> int:
    last_stage = 3 + (depths[2] + 2) // 3
    if name.startswith("stem."):
        return 0
    downsample = re.match(r"stages\.(\d)\.downsample\.", name)
    if downsample:
        return {1: 2, 2: 3, 3: last_stage}[int(downsample[1])]
    block = re.match(r"stages\.(\d)\.blocks\.(\d+)\.", name)
    if block:
        stage, index = int(block[1]), int(block[2])
        return {0: 1, 1: 2, 2: 3 + index // 3, 3: last_stage}[stage]
    return last_stage + 1


def _block_layer(name: str, depths: list[int], pattern: str, first_stage: int) -> int:
    """One layer per residual block; a stage's downsampling goes with its first block."""
    place = re.match(pattern, name)
    if place:
        return 1 + sum(depths[: int(place[1]) - first_stage]) + int(place[2] or 0)
    stem = name.startswith(("conv1.", "bn1.", "patch_embed."))
    return 0 if stem else 1 + sum(depths)
