"""The road: every step is one change, and it begins and ends at timm's models. What steps cost: test_cost.py."""

from dataclasses import fields

import pytest
import timm
import torch
from torch import nn

from models import batch_norm, stochastic_depth
from models.build import build, checkpoint_activations, scale_head
from models.cost import multiply_adds
from models.parameter_groups import layer_of_parameters, parameter_groups
from models.roadmap import ROAD
from recipes.load import load
from recipes.sections import OptimizerSettings

STEPS = list(ROAD)
FIRST, LAST = STEPS[0], STEPS[-1]


def recipe(name, *changes):
    return load("convnext_tiny_in1k", [f"model.name={name}", *changes])


def meta(name, *changes):
    with torch.device("meta"):
        return build(recipe(name, *changes), 1000)


def test_the_paper_counts_convolutions_and_linear_layers():
    """Why 4.46, not 4.49, is ConvNeXt-T, and 4.15, not 4.46, the step before: table 11 counts ConvNeXt-B as 15.35."""
    assert round(multiply_adds(meta("convnext_base"), 224) / 1e9, 2) in (15.35, 15.36)
    assert round(multiply_adds(meta(LAST), 224) / 1e9, 2) == 4.46
    assert multiply_adds(meta("roadmap_14_layer_norm"), 224) == multiply_adds(meta("roadmap_13_one_norm"), 224)


def test_every_step_is_one_change():
    before = {name: STEPS[number - 1] for number, name in enumerate(STEPS) if number}
    before |= dict.fromkeys(
        ["roadmap_08_kernel_7", "roadmap_09_kernel_9", "roadmap_10_kernel_11"], "roadmap_06_depthwise_first"
    )
    before["roadmap_11_gelu"] = "roadmap_08_kernel_7"
    for name, previous in before.items():
        changed = [f.name for f in fields(ROAD[name]) if getattr(ROAD[name], f.name) != getattr(ROAD[previous], f.name)]
        assert len(changed) == 1, (name, changed)


def test_the_last_step_is_convnext_tiny():
    """timm's weights load strictly, ours load into timm's, and the outputs are the same."""
    torch.manual_seed(0)
    theirs, ours = timm.create_model("convnext_tiny", num_classes=10), timm.create_model(LAST, num_classes=10)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter, std=0.05)  # biases and layer scale count too
    ours.load_state_dict(theirs.state_dict(), strict=True)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-4)
    theirs.load_state_dict(ours.state_dict(), strict=True)
    assert layer_of_parameters(ours) == layer_of_parameters(theirs)


def test_the_first_step_is_resnet_50():
    torch.manual_seed(0)
    theirs = timm.create_model("resnet50", num_classes=10)
    ours = timm.create_model(FIRST, num_classes=10)
    for block in (module for module in ours.modules() if hasattr(module, "gamma")):
        block.gamma = None
    for module in theirs.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight, module.bias, module.running_mean):
                nn.init.normal_(tensor, std=0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    renamed = {
        _resnets_name(name): value.squeeze() if ".fc" in name else value for name, value in ours.state_dict().items()
    }
    assert renamed.keys() == theirs.state_dict().keys()
    weights = {
        name: theirs.state_dict()[_resnets_name(name)].view(value.shape) for name, value in ours.state_dict().items()
    }
    ours.load_state_dict(weights)
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(ours.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-4)


def _resnets_name(name: str) -> str:
    for ours, theirs in [
        ("stem.0.", "conv1."), ("stem.1.", "bn1."), ("head.fc.", "fc."), (".blocks.", "."),
        ("shortcut.", "downsample."),
        ("mlp.fc1.", "conv1."), ("mlp.norm1.", "bn1."), ("conv_dw.", "conv2."), (".norm.", ".bn2."),
        ("mlp.fc2.", "conv3."),
        ("mlp.norm2.", "bn3."), *((f"stages.{stage}.", f"layer{stage + 1}.") for stage in range(4)),
    ]:  # fmt: skip
        name = name.replace(ours, theirs)
    return name


@pytest.mark.parametrize("name", [FIRST, "roadmap_08_kernel_7", "roadmap_13_one_norm", LAST])
def test_every_ingredient_of_the_recipe_works(name):
    """Layer scale, stochastic depth, BatchNorm statistics, layer decay; for all steps see test_every_recipe.py."""
    model, blocks = meta(name, "model.drop_path=0.3"), sum(ROAD[name].depths)
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in model.modules())
    assert sum(parameter.endswith(".gamma") for parameter in dict(model.named_parameters())) == blocks
    rates = stochastic_depth.attach(model, seed=0).rates
    assert rates == pytest.approx([0.3 * block / (blocks - 1) for block in range(1, blocks)])
    statistics = batch_norm.attach(model, 32)
    assert (len(statistics.layers) if statistics else 0) == norms
    groups = parameter_groups(model, OptimizerSettings(layer_decay=0.8))
    assert sorted(n for group in groups for n in group.names) == sorted(dict(model.named_parameters()))
    scale = {n: group.lr_scale for group in groups for n in group.names}
    layers = 2 + 4 + (ROAD[name].depths[2] - 1) // 3  # stem, stages with the third in threes, head
    assert scale["head.fc.weight"] == 1 and scale["stem.0.weight"] == pytest.approx(0.8 ** (layers - 1))


@pytest.mark.parametrize("name", [FIRST, "roadmap_05_inverted", "roadmap_14_layer_norm"])
def test_a_step_is_initialised_by_the_recipe_and_learns(name):
    changes = ("model.layer_scale=0.5", "model.init_std=0.01", "model.drop_path=0")
    model = build(recipe(name, *changes), classes=10)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), build(recipe(name, *changes), 10).parameters()))
    assert all((p == 0.5).all() for n, p in model.named_parameters() if n.endswith("gamma"))
    deepest = model.stages[2].blocks[-1].mlp.fc1.weight
    assert deepest.std().item() == pytest.approx(0.01, rel=0.02)
    head = model.head.fc.weight.clone()
    scale_head(model, 0.001)
    torch.testing.assert_close(model.head.fc.weight, head * 0.001)
    images = torch.randn(2, 3, 32, 32)
    model.train()(images).square().sum().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(gradient is not None and gradient.isfinite().all() for gradient in gradients)
    model.zero_grad()
    checkpoint_activations(model)
    model(images).square().sum().backward()
    assert all(torch.allclose(a, p.grad, rtol=1e-4, atol=1e-6) for a, p in zip(gradients, model.parameters()))


def test_without_layer_scale_asked_for_the_step_keeps_its_own():
    assert (build(recipe(LAST, "model.layer_scale=null"), 10).stages[0].blocks[0].gamma == 1e-6).all()
