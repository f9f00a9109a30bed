"""The small convolutional network for CIFAR-10 whitens its input, and starts as the identity where it can."""

import timm
import torch

from models.cifar_convnet import CifarConvNet, Whitening, patch_directions
from models.parameter_groups import parameter_groups
from models.prepared import prepare_model
from recipes.load import load
from tests.models.families import check


def test_it_trains_at_two_cuts_and_loads_as_a_timm_model():
    check("cifar_convnet", 32)


def test_the_whitening_directions_are_orthonormal_and_come_with_their_negatives():
    directions = patch_directions().flatten(1)
    torch.testing.assert_close(directions @ directions.T, torch.eye(12))
    weight = Whitening().weight
    assert weight.shape == (24, 3, 2, 2)
    torch.testing.assert_close(weight[12:], -weight[:12])
    torch.testing.assert_close(weight[0], weight[0, 0, 0, 0].expand(3, 2, 2))  # the grey mean


def test_a_convolution_begins_by_copying_its_input():
    group = timm.create_model("cifar_convnet").groups[1]
    x = torch.randn(2, 64, 6, 6)
    torch.testing.assert_close(group.conv1(x)[:, :64], x)


def test_the_whitening_and_the_scales_of_batch_norm_are_not_trained():
    model = prepare_model(load("convnet_cifar10"), 10).module
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "groups.0.norm1.bias" in trained and "groups.0.norm1.weight" not in trained
    assert "whitening.weight" not in dict(model.named_parameters())


def test_the_recipe_trains_the_biases_of_batch_norm_faster():
    recipe = load("convnet_cifar10")
    scale = {
        name: (group.lr_scale, group.weight_decay)
        for group in parameter_groups(prepare_model(recipe, 10).module, recipe.optimizer)
        for name in group.names
    }
    assert scale.pop("groups.2.norm2.bias") == (64.0, 0.0)
    assert scale["groups.2.conv2.weight"] == scale["head.weight"] == (1.0, 1.33e-3)


def test_it_has_the_size_that_is_documented():
    with torch.device("meta"):
        assert sum(parameter.numel() for parameter in CifarConvNet().parameters()) == 1_972_480
