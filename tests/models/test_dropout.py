"""Whatever a model draws in training mode is keyed by step, position and layer, or the model is refused by layer."""

import random

import pytest
import timm
import torch
from torch import nn
from torch.nn import functional as F

from models import stochastic_depth
from models.draws import find_draws
from models.prepared import prepare_model
from models.stochastic_depth import KeyedDropout, StochasticDepth
from recipes.errors import UserError
from recipes.load import load

# Models that draw without being asked to: a head's F.dropout, dropout layers in attention, on shared tables, in a head.
BY_DEFAULT = {
    "legacy_seresnet18": {"size": 32, "layers": 1},
    "cpubone_nano": {"size": 64, "layers": 3},
    "test_vit_relpos": {"size": 160, "layers": 9},
}


def prepare(name, size, classes=10, **changes):
    values = {"model.layer_scale": "null", "model.drop_path": 0, "batch.global": 64, "batch.slices": 8, **changes}
    overrides = [f"model.name={name}", f"input.size={size}", *(f"{key}={value}" for key, value in values.items())]
    return prepare_model(load("demo", overrides), classes)


def outputs(prepared, images, cuts, step=5):
    """The logits of all images in training mode, passed through in micro-batches of these sizes."""
    found, first = [], 0
    prepared.module.train()
    with torch.no_grad():
        for count in cuts:
            torch.manual_seed(count)  # of no effect: nothing reads it
            prepared.drop_path.draw(step, torch.arange(first, first + count))
            found.append(prepared.module(images[first : first + count]))
            first += count
    return torch.cat(found)


@pytest.mark.parametrize("name", BY_DEFAULT)
def test_models_with_dropout_of_their_own_compute_the_same_at_any_cut(name):
    size, layers = BY_DEFAULT[name].values()
    prepared = prepare(name, size, **{"model.init_std": 0.2})  # large weights, so that no mask is without effect
    assert len(prepared.drop_path.dropouts) == layers
    prepared.module.double()  # rounding, which depends on the processor and the micro-batch, is then far below a mask
    images = torch.randn(16, 3, size, size, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    whole = outputs(prepared, images, [16])
    torch.testing.assert_close(outputs(prepared, images, [8, 8]), whole, rtol=1e-9, atol=1e-9)
    assert torch.equal(outputs(prepared, images, [16]), whole)
    assert not torch.equal(outputs(prepared, images, [16], step=6), whole)


def test_the_models_own_rates_are_kept_and_evaluation_drops_nothing():
    prepared = prepare("legacy_seresnet18", 32)
    assert [dropout.rate for dropout in prepared.drop_path.dropouts] == [0.2]
    plain = timm.create_model("legacy_seresnet18", num_classes=10).eval()
    plain.load_state_dict(prepared.module.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(prepared.module.eval()(images), plain(images))


def test_the_heads_dropout_is_on_the_input_of_the_classifier():
    prepared = prepare("legacy_seresnet18", 32)
    with torch.no_grad():
        prepared.module.last_linear.weight.fill_(1)
        prepared.module.last_linear.bias.zero_()
    seen = []
    prepared.module.last_linear.register_forward_hook(lambda module, inputs, output: seen.append(inputs[0]))
    outputs(prepared, torch.randn(16, 3, 32, 32), [16])
    before = prepared.module.eval()(torch.randn(16, 3, 32, 32))
    assert before.isfinite().all()
    dropped = (seen[0] == 0).float().mean()
    zeros = (seen[1] == 0).float().mean()  # after ReLU some features are 0 anyway
    assert dropped > zeros + 0.1


def test_without_dropout_there_is_nothing_to_draw():
    for name in ("test_convnext", "test_resnet", "test_vit"):
        prepared = prepare(name, 160, **{"model.drop_path": 0.1})
        assert not prepared.drop_path.dropouts and prepared.drop_path.branches


def test_a_fingerprint_covers_the_keys_of_dropout():
    depth = StochasticDepth(0, [0.5], [KeyedDropout(0.1), KeyedDropout(0.1)])
    depth.draw(3, torch.arange(8))
    scales, keys = depth.drawn_for(5)
    depth.draw(3, torch.arange(4, 8))
    assert torch.equal(depth.drawn_for(1)[0], scales) and torch.equal(depth.drawn_for(1)[1], keys)
    assert scales.shape == (1,) and keys.shape == (2,) and keys[0] != keys[1]


def keyed(dropout, images=8, step=0, seed=0, first=0):
    StochasticDepth(seed, [], [dropout]).draw(step, torch.arange(first, first + images))
    return dropout.train()


def test_a_mask_depends_on_position_step_layer_and_seed_and_on_nothing_else():
    ones = torch.ones(64, 50)
    whole = keyed(KeyedDropout(0.5), 64)(ones)
    parts = [keyed(KeyedDropout(0.5), 16, first=first)(ones[:16]) for first in (0, 16, 32, 48)]
    assert torch.equal(torch.cat(parts), whole)
    one, other = KeyedDropout(0.5), KeyedDropout(0.5)
    StochasticDepth(0, [], [one, other]).draw(0, torch.arange(64))
    assert torch.equal(one.train()(ones), whole)
    for different in (
        other.train()(ones),
        keyed(KeyedDropout(0.5), 64, step=1)(ones),
        keyed(KeyedDropout(0.5), 64, seed=1)(ones),
        keyed(KeyedDropout(0.5), 64, first=64)(ones),
    ):
        assert 0.4 < ((different == 0) != (whole == 0)).float().mean() < 0.6


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9, 1.0])
def test_statistically_it_is_torchs_dropout(rate):
    """Rate and scale; independence between images and elements. Bounds are five standard errors."""
    masks = keyed(KeyedDropout(rate), 2048)(torch.ones(2048, 512))
    kept_scale = 1 / (1 - rate) if rate < 1 else 0
    assert set(masks.unique().tolist()) <= {0.0, torch.tensor(kept_scale).item()}
    dropped = (masks == 0).double()
    assert abs(dropped.mean() - rate) <= 5 * (rate * (1 - rate) / dropped.numel()) ** 0.5
    if rate < 1:
        assert dropped.mean(0).var() == pytest.approx(rate * (1 - rate) / 2048, rel=0.35)
        assert dropped.mean(1).var() == pytest.approx(rate * (1 - rate) / 512, rel=0.2)


@pytest.mark.parametrize(
    "kind, shape", [(nn.Dropout1d, (8, 6, 9)), (nn.Dropout2d, (8, 6, 3, 3)), (nn.Dropout3d, (8, 6, 3, 3, 3))]
)
def test_channel_dropout_drops_whole_channels(kind, shape):
    model = nn.Sequential(kind(0.5))
    depth = stochastic_depth.attach(model, seed=0)
    depth.draw(0, torch.arange(8))
    per_channel = model.train()(torch.ones(shape)).flatten(2)
    assert (per_channel.min(2).values == per_channel.max(2).values).all()
    assert set(per_channel.unique().tolist()) == {0.0, 2.0}


def test_gradients_flow_through_what_is_kept_only_and_recomputing_draws_the_same():
    dropout = keyed(KeyedDropout(0.5))
    x = torch.randn(8, 100, requires_grad=True)
    y = torch.utils.checkpoint.checkpoint(dropout, x, use_reentrant=False)
    y.sum().backward()
    assert torch.equal(x.grad != 0, y != 0) and set(x.grad.unique().tolist()) == {0.0, 2.0}


def test_parts_of_images_have_masks_of_their_own():
    """Swin's windows: several rows for each image, images in order."""
    rows = keyed(KeyedDropout(0.5), 4)(torch.ones(4 * 3, 64)).view(4, 3, 64)
    assert (rows[:, 0] != rows[:, 1]).any() and (rows[0] != rows[1]).any()
    parts = torch.cat([keyed(KeyedDropout(0.5), 2, first=first)(torch.ones(2 * 3, 64)) for first in (0, 2)])
    assert torch.equal(parts.view(4, 3, 64), rows)


@pytest.mark.parametrize(
    "name, size, options",
    [
        ("test_vit", 64, {"attn_drop_rate": 0.1, "proj_drop_rate": 0.1, "pos_drop_rate": 0.1, "drop_rate": 0.1}),
        ("swin_tiny_patch4_window7_224", 64, {"attn_drop_rate": 0.1, "window_size": 2}),
        ("test_convnext", 64, {"drop_rate": 0.3}),
        ("vgg11", 32, {"drop_rate": 0.5}),
    ],
)
def test_dropout_that_timm_is_asked_for_is_keyed_attention_included(name, size, options):
    sized = {"img_size": size} if "vgg" not in name and "convnext" not in name else {}
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=10, **sized, **options)
    with torch.device("meta"):
        shadow = timm.create_model(name, num_classes=10, **sized, **options)
    assert not find_draws(shadow, stochastic_depth.attach(shadow, 0), size)
    depth = stochastic_depth.attach(model.train(), 0)
    assert depth.dropouts
    images = torch.randn(4, 3, size, size)
    found = []
    with torch.no_grad():
        for cut in ([4], [2, 2]):
            parts = []
            for number, part in enumerate(images.split(cut)):
                depth.draw(1, torch.arange(number * cut[0], number * cut[0] + len(part)))
                parts.append(model(part))
            found.append(torch.cat(parts))
    torch.testing.assert_close(found[0], found[1], rtol=1e-4, atol=1e-5)


def test_it_compiles_without_a_recompile_from_step_to_step():
    model = nn.Sequential(nn.Linear(8, 8), nn.Dropout(0.5), nn.Linear(8, 4))
    depth = stochastic_depth.attach(model.train(), 0)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    compiled = torch.compile(model, backend="aot_eager")
    images = torch.randn(6, 8)
    for step in range(3):
        depth.draw(step, torch.arange(6))
        torch.testing.assert_close(compiled(images), model(images))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] == 1


class Drawing(nn.Module):
    """A model whose one layer computes `draw` of its input."""

    def __init__(self, draw):
        super().__init__()
        self.layer = Layer(draw)
        self.fc = nn.Linear(3, 2)

    def get_classifier(self):
        return self.fc

    def forward(self, images):
        return self.fc(self.layer(images).mean((2, 3)))


class Layer(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.draw = draw

    def forward(self, x):
        return self.draw(x)


DRAWS = {
    "F.dropout": lambda x: F.dropout(x, 0.1, training=True),
    "alpha dropout": nn.AlphaDropout(0.1),
    "feature alpha dropout": nn.FeatureAlphaDropout(0.1),
    "RReLU": nn.RReLU(),
    "fractional pooling": nn.FractionalMaxPool2d(2, output_ratio=0.5),
    "gumbel": lambda x: F.gumbel_softmax(x, dim=1),
    "DropBlock": timm.layers.DropBlock2d(0.1, block_size=3),
    "attention": lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.1),
    "noise": lambda x: x + torch.randn_like(x),
    "permutation": lambda x: x[:, torch.randperm(3, device=x.device)],
    "Python's random": lambda x: x * random.random(),
}


@pytest.mark.parametrize("kind", DRAWS)
def test_every_other_way_to_draw_is_found(kind):
    with torch.device("meta"):
        model = Drawing(DRAWS[kind])
    draws = find_draws(model, stochastic_depth.attach(model, 0), size=16)
    assert draws and not any(draw.before_classifier for draw in draws)
    assert kind == "Python's random" or draws[0].layer.startswith("layer")


def test_a_layer_that_draws_nothing_is_not_found():
    for quiet in (nn.Dropout(0.0), nn.ReLU(), nn.MaxPool2d(2), lambda x: F.scaled_dot_product_attention(x, x, x)):
        with torch.device("meta"):
            model = Drawing(quiet)
        assert not find_draws(model, stochastic_depth.attach(model, 0), size=16)


def test_a_model_that_cannot_be_keyed_is_refused_by_name(monkeypatch):
    """A layer that adds noise stands for any that no rule knows."""
    monkeypatch.setattr("models.prepared.build", lambda recipe, classes: Drawing(DRAWS["noise"]))
    with pytest.raises(UserError, match=r"test_convnext draws random numbers in its layer layer \(Layer\)") as caught:
        prepare("test_convnext", 48)
    assert "\n" not in str(caught.value)


def test_a_size_that_the_model_cannot_process_is_one_sentence():
    with pytest.raises(
        UserError, match="vgg11 cannot process images of 16 pixels .* choose another input.size"
    ) as caught:
        prepare("vgg11", 16)
    assert "\n" not in str(caught.value)
