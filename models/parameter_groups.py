"""Parameter groups: the weight decay and the learning-rate factor of each parameter, from its name and shape.

Layer-wise decay numbers the layers from the stem, 0, to the head. A parameter of layer ``l`` has ``decay ** (last -
l)`` times the learning rate. ConvNeXt's numbering is that of its code: the blocks of the third stage form groups of
three, which gives S, B, L and XL the paper's 12 groups between stem and head. That code does not support T. Here the
same rule is applied to any depth without gaps in the numbers, so T (9 blocks in the third stage) has 6 groups. The
networks of the roadmap from ResNet-50 (`models.roadmap`) are numbered in the same way.
"""

import re
from dataclasses import dataclass

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

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

    Biases and other 1-d parameters (norms, layer scale) have no weight decay, and neither have parameters that the
    model itself excludes (e.g. Swin's relative position biases).

    Raises:
        UserError: the recipe asks for layer-wise decay, and the layers of this model family are not numbered here.
    """
    shapes = {name: parameter.shape for name, parameter in model.named_parameters() if parameter.requires_grad}
    layers = layer_of_parameters(model) if settings.layer_decay is not None else dict.fromkeys(shapes, 0)
    last = max(layers.values())
    undecayed: set[str] = getattr(model, "no_weight_decay", set)()
    norm_biases = _norm_biases(model)
    members: dict[tuple[int, bool, float], list[str]] = {}
    for name, shape in shapes.items():
        decays = len(shape) > 1 and not name.endswith(".bias") and name not in undecayed
        factor = settings.norm_bias_lr_scale if name in norm_biases else 1.0
        members.setdefault((layers[name], decays, factor), []).append(name)
    return [
        ParameterGroup(
            names=tuple(names),
            weight_decay=settings.weight_decay if decays else 0.0,
            lr_scale=factor * (settings.layer_decay or 1.0) ** (last - layer),
        )
        for (layer, decays, factor), names in sorted(members.items())
    ]


def _norm_biases(model: nn.Module) -> set[str]:
    return {f"{name}.bias" for name, module in model.named_modules() if isinstance(module, _BatchNorm)}


def layer_of_parameters(model: nn.Module) -> dict[str, int]:
    """Return each parameter's layer number, 0 for the stem and the largest for the head.

    Raises:
        UserError: the model is not a ConvNeXt, a network of the roadmap to it, a ResNet, ResNeXt or Swin.
    """
    names = [name for name, _ in model.named_parameters()]
    if hasattr(model, "stages") and hasattr(model, "stem"):
        return {name: _convnext_layer(name, _block_counts(model.get_submodule("stages"))) for name in names}
    if hasattr(model, "layer4"):
        depths = [len(list(model.get_submodule(f"layer{stage}").children())) for stage in range(1, 5)]
        return {name: _block_layer(name, depths, r"layer(\d)\.(\d+)\.", first_stage=1) for name in names}
    if hasattr(model, "patch_embed") and hasattr(model, "layers"):
        depths = _block_counts(model.get_submodule("layers"))
        return {
            name: _block_layer(name, depths, r"layers\.(\d)\.(?:blocks\.(\d+)|downsample)\.", first_stage=0)
            for name in names
        }
    raise UserError(f"layer-wise decay is not defined for {type(model).__name__}: add optimizer.layer_decay=null")


def _block_counts(stages: nn.Module) -> list[int]:
    return [len(list(stage.get_submodule("blocks").children())) for stage in stages.children()]


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
    """Return a layer number per residual block; the downsampling of a stage has the number of its first block."""
    place = re.match(pattern, name)
    if place:
        return 1 + sum(depths[: int(place[1]) - first_stage]) + int(place[2] or 0)
    stem = name.startswith(("conv1.", "bn1.", "patch_embed."))
    return 0 if stem else 1 + sum(depths)
