"""The isotropic ConvNeXts load the released weights by name, and train as exactly as any model."""

import timm
import torch

from models.convnext_isotropic import checkpoint_filter_fn
from models.frozen import freeze
from models.weights import fit_weights
from tests.models.families import check

NAME = "test_convnext_isotropic"
RELEASED_BLOCK = {  # names in a block of the released code, and shapes at width 32
    "gamma": (32,),
    "dwconv.weight": (32, 1, 7, 7),
    "dwconv.bias": (32,),
    "norm.weight": (32,),
    "norm.bias": (32,),
    "pwconv1.weight": (128, 32),
    "pwconv1.bias": (128,),
    "pwconv2.weight": (32, 128),
    "pwconv2.bias": (32,),
}
RELEASED = {
    "stem.weight": (32, 3, 16, 16),
    "stem.bias": (32,),
    **{f"blocks.{block}.{name}": shape for block in range(2) for name, shape in RELEASED_BLOCK.items()},
    "norm.weight": (32,),
    "norm.bias": (32,),
    "head.weight": (10, 32),
    "head.bias": (10,),
}


def test_it_trains_at_two_cuts_and_loads_as_a_timm_model():
    check(NAME, 32)


def test_weights_under_the_released_names_give_the_released_function():
    generator = torch.Generator().manual_seed(0)
    released = {name: torch.randn(shape, generator=generator) * 0.2 for name, shape in RELEASED.items()}
    model = timm.create_model(NAME, num_classes=10, ls_init_value=1e-6).eval()
    assert fit_weights(model, released, "released", new_head=False) == []
    images = torch.randn(2, 3, 64, 64, generator=generator)
    with torch.no_grad():
        torch.testing.assert_close(model(images), by_hand(released, images))
    again = checkpoint_filter_fn(dict(model.state_dict()), model)
    assert again.keys() == model.state_dict().keys()  # its own names stay as they are


def by_hand(weights: dict[str, torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    """Compute the network as the paper describes it: convolution, LayerNorm, two linear layers around a GELU."""
    x = torch.conv2d(images, weights["stem.weight"], weights["stem.bias"], stride=16)
    for block in range(2):
        own = {name: weights[f"blocks.{block}.{name}"] for name in RELEASED_BLOCK}
        y = torch.conv2d(x, own["dwconv.weight"], own["dwconv.bias"], padding=3, groups=32).permute(0, 2, 3, 1)
        y = torch.layer_norm(y, (32,), own["norm.weight"], own["norm.bias"], eps=1e-6)
        y = torch.nn.functional.gelu(y @ own["pwconv1.weight"].T + own["pwconv1.bias"])
        y = (y @ own["pwconv2.weight"].T + own["pwconv2.bias"]) * own["gamma"]
        x = x + y.permute(0, 3, 1, 2)
    pooled = torch.layer_norm(x.mean((2, 3)), (32,), weights["norm.weight"], weights["norm.bias"], eps=1e-6)
    return pooled @ weights["head.weight"].T + weights["head.bias"]


def test_activations_are_recomputed_and_parts_are_trained_as_in_timms_models():
    model = timm.create_model(NAME, num_classes=10)
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = model(images)
    model.set_grad_checkpointing(True)
    assert torch.equal(model(images), expected)
    assert torch.equal(model.get_classifier()(model.forward_head(model.forward_features(images), True)), expected)
    freeze(model, "last:1")
    trained = {name.rpartition(".")[0] for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert "blocks.1.conv_dw" in trained and {"norm", "head"} <= trained
    assert not {name for name in trained if name.startswith(("stem", "blocks.0"))}
