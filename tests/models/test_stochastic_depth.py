"""Keyed stochastic depth is the same DropPath, decided by position and step instead of by a generator."""

import pytest
import timm
import torch
from timm.layers import DropPath
from torch.utils.checkpoint import checkpoint

from models import stochastic_depth
from models.stochastic_depth import KeyedDropPath, StochasticDepth

MODELS = {
    "test_convnext": {},
    "resnet18": {},
    "test_resnet": {},
    "swin_tiny_patch4_window7_224": {"img_size": 64, "window_size": 2},
}


def make(name="test_convnext", rate=0.3, seed=0):
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, drop_path_rate=rate, **MODELS[name]).train()
    return model, stochastic_depth.attach(model, seed)


@pytest.mark.parametrize("name", MODELS)
def test_every_branch_keeps_its_rate_and_no_timm_drop_path_is_left(name):
    expected = [
        module.drop_prob
        for module in timm.create_model(name, drop_path_rate=0.3, **MODELS[name]).modules()
        if isinstance(module, DropPath)
    ]
    model, depth = make(name)
    assert depth.rates == expected and expected
    assert not any(isinstance(module, DropPath) for module in model.modules())
    assert sum(isinstance(module, KeyedDropPath) for module in model.modules()) == len(expected)


def test_masks_depend_on_position_step_branch_and_seed_and_on_nothing_else():
    depth = StochasticDepth(0, [0.5] * 8)
    whole = depth.draw(7, torch.arange(512))
    torch.manual_seed(99)
    in_parts = torch.cat([depth.draw(7, part) for part in torch.arange(512).split(13)], dim=1)
    assert torch.equal(whole, in_parts)
    assert torch.equal(whole[:, 100:], depth.draw(7, torch.arange(100, 512)))
    for other in (StochasticDepth(1, [0.5] * 8).draw(7, torch.arange(512)), depth.draw(8, torch.arange(512))):
        assert (other != whole).float().mean() > 0.4
    assert all((whole[a] != whole[b]).float().mean() > 0.4 for a in range(8) for b in range(a))


def test_statistically_it_is_timms_drop_path():
    """Rate and scale; independence between images, branches and steps. Bounds are five standard errors."""
    rates, images, steps = [0.05, 0.2, 0.5, 0.8], 4096, 64
    depth = StochasticDepth(3, rates)
    drawn = torch.stack([depth.draw(step, torch.arange(images)) for step in range(steps)])  # [steps, branches, images]
    for branch, rate in enumerate(rates):
        values = drawn[:, branch]
        assert set(values.unique().tolist()) == {0.0, torch.tensor(1 / (1 - rate)).item()}
        dropped = (values == 0).double()
        error = (rate * (1 - rate) / dropped.numel()) ** 0.5
        assert abs(dropped.mean() - rate) < 5 * error
        per_image, per_step = dropped.mean(0), dropped.mean(1)
        # the spread of the means is the binomial one: nothing is shared between steps or between images
        assert per_image.var() == pytest.approx(rate * (1 - rate) / steps, rel=0.2)
        assert per_step.var() == pytest.approx(rate * (1 - rate) / images, rel=1.0)
    flat = (drawn == 0).double().permute(1, 0, 2).flatten(1)
    correlation = torch.corrcoef(flat) - torch.eye(len(rates))
    assert correlation.abs().max() < 5 / flat.shape[1] ** 0.5
    for lag in (1, 2, 3, 16, 128):
        neighbours = torch.corrcoef(torch.stack([flat[2, :-lag], flat[2, lag:]]))[0, 1]
        assert abs(neighbours) < 5 / flat.shape[1] ** 0.5


def test_a_forward_pass_reads_no_global_generator():
    model, depth = make()
    images = torch.randn(8, 3, 64, 64)
    depth.draw(0, torch.arange(8))
    before = torch.get_rng_state()
    first = model(images)
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(5)
    assert torch.equal(first, model(images))


@pytest.mark.parametrize("reentrant", [False, True])
def test_recomputed_activations_draw_the_same_masks(reentrant):
    gradients = []
    for use_checkpoint in (False, True):
        model, depth = make()
        images = torch.randn(8, 3, 64, 64, generator=torch.Generator().manual_seed(0), requires_grad=True)
        depth.draw(3, torch.arange(8))
        features = (
            checkpoint(model.forward_features, images, use_reentrant=reentrant)
            if use_checkpoint
            else model.forward_features(images)
        )
        model.forward_head(features).sum().backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients))


@pytest.mark.slow
def test_it_compiles_without_a_recompile_from_step_to_step():
    model, depth = make()
    compiled = torch.compile(model, backend="aot_eager")
    images = torch.randn(8, 3, 64, 64)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    for step in range(4):
        depth.draw(step, torch.arange(8))
        torch.testing.assert_close(compiled(images), model(images), rtol=1e-5, atol=1e-6)
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


def test_evaluation_drops_nothing():
    model, depth = make()
    plain = timm.create_model("test_convnext", num_classes=10).eval()
    plain.load_state_dict(model.state_dict())
    images = torch.randn(4, 3, 64, 64)
    assert torch.equal(model.eval()(images), plain(images))
