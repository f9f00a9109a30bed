"""ResNets for CIFAR-10 have the stem of He et al., and are otherwise timm's."""

import pytest
import timm
import torch

from models.parameter_groups import layer_of_parameters
from models.prepared import prepare_model
from recipes.load import load
from tests.models.families import check

NAMES = ["resnet18_cifar", "resnet34_cifar", "resnet50_cifar", "resnext50_32x4d_cifar"]


def recipe(name, *changes):
    overrides = [f"model.name={name}", "model.layer_scale=null", "model.drop_path=0", "model.init_std=null", *changes]
    return load("demo", overrides)


@pytest.mark.parametrize("name", NAMES)
def test_only_the_stem_differs_from_the_network_for_imagenet(name):
    with torch.device("meta"):
        ours = prepare_model(recipe(name), 10).module
        theirs = timm.create_model(name.removesuffix("_cifar"), num_classes=10)
        stages = ours.forward_intermediates(torch.empty(2, 3, 32, 32), intermediates_only=True)
    shapes, expected = ({n: p.shape for n, p in model.named_parameters()} for model in (ours, theirs))
    assert shapes.pop("conv1.weight") == (64, 3, 3, 3) and expected.pop("conv1.weight") == (64, 3, 7, 7)
    assert shapes == expected
    assert [stage.shape[-1] for stage in stages] == [32, 32, 16, 8, 4]
    assert layer_of_parameters(ours)["conv1.weight"] == 0


@pytest.mark.slow
def test_it_trains_at_two_cuts_and_loads_as_a_timm_model():
    check("resnet18_cifar", 32)


def test_the_recipes_have_the_stem_and_start_from_scratch():
    for name in ("resnet18_cifar10_scratch", "resnet50_cifar10_scratch", "resnext50_32x4d_cifar10_scratch"):
        found = load(name)
        assert found.model.name == name.removesuffix("10_scratch") and found.model.weights is None
        assert (found.optimizer.name, found.optimizer.lr, found.optimizer.weight_decay) == ("sgd", 0.1, 5e-4)
        assert (found.input.size, found.augment.crop, found.augment.pad) == (32, "pad", 4)
