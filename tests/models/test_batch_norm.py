"""BatchNorm computes the same whatever the micro-batch, or the cut is refused."""

import pytest
import timm
import torch
from timm.layers import BatchNormAct2d, EvoNorm2dB0, FrozenBatchNormAct2d, SplitBatchNorm2d, SyncBatchNormAct
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from launcher.cut import cut_batch
from models import batch_norm
from recipes.errors import UserError
from recipes.load import load


def run(micro_batch, images):
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10).train()
    running = batch_norm.attach(model, statistics_size=8)
    outputs = []
    for part in images.split(micro_batch):
        outputs.append(model(part))
        running.add(len(part) // 8)
    torch.cat(outputs).square().sum().backward()
    running.update(lambda tensor: tensor)
    return (
        torch.cat(outputs),
        [p.grad for p in model.parameters()],
        {k: v for k, v in model.state_dict().items() if "running" in k},
    )


def test_outputs_gradients_and_running_averages_do_not_depend_on_the_micro_batch():
    images = torch.randn(48, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    reference = run(8, images)
    for micro_batch in (16, 24, 48):
        outputs, gradients, averages = run(micro_batch, images)
        torch.testing.assert_close(outputs, reference[0], rtol=1e-5, atol=1e-5)
        for gradient, expected in zip(gradients, reference[1]):
            torch.testing.assert_close(gradient, expected, rtol=1e-3, atol=1e-3 * expected.abs().max().item())
        for name, value in averages.items():
            torch.testing.assert_close(value, reference[2][name], rtol=1e-5, atol=1e-6)


def test_one_statistics_batch_is_plain_batch_norm():
    images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    plain = timm.create_model("test_resnet", num_classes=10).train()
    expected = plain(images)
    outputs, _, averages = run(8, images)
    torch.testing.assert_close(outputs, expected)
    for name, value in averages.items():
        torch.testing.assert_close(value, plain.state_dict()[name], msg=name)


def test_padding_does_not_enter_the_running_averages():
    images = torch.randn(16, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = timm.create_model("test_resnet", num_classes=10).train()
    running = batch_norm.attach(model, statistics_size=8)
    model(torch.cat([images, torch.zeros_like(images[:8])]))
    running.add(real_batches=2)
    running.update(lambda tensor: tensor)
    for name, expected in run(16, images)[2].items():
        torch.testing.assert_close(model.state_dict()[name], expected, rtol=1e-5, atol=1e-6)


def test_a_cut_that_would_change_the_statistics_is_refused():
    recipe = load("demo")
    with pytest.raises(UserError, match="multiple of 32"):
        cut_batch(recipe, 1, micro_batch=48, largest=64, unit=32)
    with pytest.raises(UserError, match="at most 4"):
        cut_batch(recipe, 5, micro_batch=None, largest=64, unit=32)
    assert cut_batch(recipe, 3, None, largest=64, unit=32).micro_batch % 32 == 0


LAYERS = {
    "BatchNorm1d": (nn.BatchNorm1d(6), (6,)),
    "BatchNorm1d of sequences": (nn.BatchNorm1d(6), (6, 5)),
    "BatchNorm2d": (nn.BatchNorm2d(6), (6, 3, 3)),
    "BatchNorm3d": (nn.BatchNorm3d(6), (6, 2, 3, 3)),
    "without weights": (nn.BatchNorm2d(6, affine=False), (6, 3, 3)),
    "BatchNormAct2d": (BatchNormAct2d(6, act_layer=nn.PReLU), (6, 3, 3)),
    "BatchNormAct2d with dropout": (BatchNormAct2d(6, drop_layer=lambda: nn.Dropout2d(0.0)), (6, 3, 3)),
}


@pytest.mark.parametrize("kind", LAYERS)
def test_every_kind_of_layer_computes_over_each_statistics_batch_what_it_computes_by_itself(kind):
    layer, shape = LAYERS[kind]
    images = torch.randn(12, *shape, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([layer.train()(part) for part in images.split(4)])
    weights = layer.state_dict()
    model = nn.Sequential(layer)
    running = batch_norm.attach(model, statistics_size=4)
    assert torch.equal(model.train()(images), expected)
    running.add(3)
    running.update(lambda tensor: tensor)
    layer.load_state_dict({name.removeprefix("0."): value for name, value in model.state_dict().items()})
    assert weights.keys() == layer.state_dict().keys()
    assert torch.equal(model.eval()(images), layer.eval()(images))


def test_a_linear_layers_norm_over_tokens_takes_all_tokens_of_its_images():
    """LeViT normalises rows ``[images * tokens, features]``: a statistics batch is all rows of its images."""
    layer = nn.BatchNorm1d(6)
    model = nn.Sequential(nn.Flatten(0, 1), layer).train()
    tokens = torch.randn(8, 5, 6, generator=torch.Generator().manual_seed(0))
    expected = torch.cat([layer(part.flatten(0, 1)) for part in tokens.split(4)])
    batch_norm.attach(model, statistics_size=4)
    assert torch.equal(model(tokens), expected)


def test_sync_batch_norm_is_over_the_statistics_batch_at_any_number_of_processes():
    for kind in (nn.SyncBatchNorm, SyncBatchNormAct):
        model = nn.Sequential(kind(3)).train()
        batch_norm.attach(model, statistics_size=4)
        images = torch.randn(8, 3, 2, 2)
        assert torch.equal(model(images), torch.cat([nn.BatchNorm2d(3)(part) for part in images.split(4)]))


@pytest.mark.parametrize("layer", [EvoNorm2dB0(4), SplitBatchNorm2d(4), nn.BatchNorm2d(4, momentum=None)], ids=repr)
def test_a_layer_with_batch_statistics_that_cannot_be_replaced_is_refused_by_name(layer):
    with pytest.raises(UserError, match=f"layer 0 is a {type(layer).__name__}, whose statistics"):
        batch_norm.attach(nn.Sequential(layer), statistics_size=8)


def test_layers_without_batch_statistics_are_left_alone():
    layers = [FrozenBatchNormAct2d(4), nn.GroupNorm(2, 4), nn.InstanceNorm2d(4), timm.layers.EvoNorm2dS0(4, 2)]
    layers += [timm.layers.FilterResponseNormTlu2d(4), timm.layers.LayerNorm2d(4)]
    assert batch_norm.attach(nn.Sequential(*layers), statistics_size=8) is None


class CountedOperations(TorchDispatchMode):
    count = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += not function.is_view and function is not torch.ops.aten.empty.memory_format
        return function(*args, **(kwargs or {}))


def test_a_statistics_batch_costs_one_operation():
    """Everything else is done once for a layer: each operation is a kernel launch on a GPU."""
    model = nn.Sequential(nn.BatchNorm2d(4)).train()
    running = batch_norm.attach(model, statistics_size=4)
    images = torch.zeros(32, 4, 2, 2)
    with CountedOperations() as counted:
        model(images)
        running.add(8)
    assert counted.count == 8 + 3  # zeros for the statistics, the concatenation, the sum of the statistics


def test_fewer_than_two_images_for_the_statistics_are_refused_with_the_keys_to_change():
    with pytest.raises(UserError, match="at least 2 images .* batch.statistics to 2 or more") as caught:
        batch_norm.attach(timm.create_model("test_resnet"), statistics_size=1)
    assert "\n" not in str(caught.value)
    assert batch_norm.attach(timm.create_model("test_convnext"), statistics_size=1) is None  # it has no BatchNorm
