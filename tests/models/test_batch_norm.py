"""BatchNorm computes the same whatever the micro-batch, or the cut is refused."""

import pytest
import timm
import torch

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
        cut_batch(recipe, 1, micro_batch=48, largest=64, statistics_size=32)
    with pytest.raises(UserError, match="at most 4"):
        cut_batch(recipe, 5, micro_batch=None, largest=64, statistics_size=32)
    assert cut_batch(recipe, 3, None, largest=64, statistics_size=32).micro_batch % 32 == 0


def test_a_kind_of_batch_norm_that_cannot_be_replaced_is_refused():
    with pytest.raises(UserError, match="statistics"):
        batch_norm.attach(timm.create_model("test_efficientnet"), statistics_size=8)


def test_fewer_than_two_images_for_the_statistics_are_refused_with_the_keys_to_change():
    with pytest.raises(UserError, match="at least 2 images .* batch.statistics to 2 or more") as caught:
        batch_norm.attach(timm.create_model("test_resnet"), statistics_size=1)
    assert "\n" not in str(caught.value)
    assert batch_norm.attach(timm.create_model("test_convnext"), statistics_size=1) is None  # it has no BatchNorm
