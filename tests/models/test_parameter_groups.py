"""Weight decay and layer-wise learning rates are those of ConvNeXt's code."""

import pytest
import timm
import torch

from models.parameter_groups import layer_of_parameters, parameter_groups
from recipes.errors import UserError
from recipes.sections import OptimizerSettings


def meta(name, **options):
    with torch.device("meta"):
        return timm.create_model(name, **options)


def papers_layer(name: str) -> int:
    """The numbering of ConvNeXt's code for 27 blocks in the third stage, for timm's parameter names."""
    parts = name.split(".")
    if parts[0] == "stem":
        return 0
    if parts[0] == "stages":
        stage = int(parts[1])
        if parts[2] == "downsample":
            return {1: 2, 2: 3, 3: 12}[stage]
        return [1, 2, 3 + int(parts[3]) // 3, 12][stage]
    return 13


@pytest.mark.parametrize("size", ["small", "base", "large", "xlarge"])
def test_convnext_layers_are_the_papers_value_by_value(size):
    model = meta(f"convnext_{size}")
    layers = layer_of_parameters(model)
    assert layers == {name: papers_layer(name) for name, _ in model.named_parameters()}
    scale = {
        name: group.lr_scale
        for group in parameter_groups(model, OptimizerSettings(layer_decay=0.8))
        for name in group.names
    }
    assert scale["stem.0.weight"] == pytest.approx(0.8**13)
    assert scale["stages.2.blocks.26.mlp.fc1.weight"] == pytest.approx(0.8**2)
    assert scale["head.fc.weight"] == 1


def test_convnext_tiny_has_the_same_rule_without_a_gap():
    layers = layer_of_parameters(meta("convnext_tiny"))
    assert sorted(set(layers.values())) == list(range(8))
    assert (
        layers["stages.2.blocks.8.gamma"] == 5
        and layers["stages.3.downsample.0.weight"] == layers["stages.3.blocks.2.gamma"] == 6
    )


@pytest.mark.parametrize(
    "name, blocks", [("resnet50", 16), ("resnext50_32x4d", 16), ("resnet18", 8), ("swin_tiny_patch4_window7_224", 12)]
)
def test_other_families_have_a_layer_per_block(name, blocks):
    assert sorted(set(layer_of_parameters(meta(name)).values())) == list(range(blocks + 2))


@pytest.mark.parametrize("name", ["convnext_tiny", "resnet50", "swin_tiny_patch4_window7_224"])
@pytest.mark.parametrize("layer_decay", [None, 0.7])
def test_every_parameter_is_in_one_group_and_only_matrices_decay(name, layer_decay):
    model = meta(name)
    groups = parameter_groups(model, OptimizerSettings(weight_decay=0.05, layer_decay=layer_decay))
    names = [member for group in groups for member in group.names]
    assert sorted(names) == sorted(dict(model.named_parameters()))
    shapes = {member: parameter.ndim for member, parameter in model.named_parameters()}
    for group in groups:
        for member in group.names:
            undecayed = shapes[member] <= 1 or member.endswith((".bias", "relative_position_bias_table"))
            assert group.weight_decay == (0.0 if undecayed else 0.05), member
    assert layer_decay or len(groups) == 2


def test_a_family_without_numbering_is_refused():
    with pytest.raises(UserError, match="layer_decay=null"):
        layer_of_parameters(meta("vgg11"))
