"""Weights that are damaged, or of which no model computes anything, are refused in one sentence."""

import pytest
import timm
import torch

from models.weights import fit_weights
from recipes.errors import UserError


@pytest.mark.parametrize(
    "change, part",
    [
        (lambda value: value.to(torch.int64), "is int64, not floating point"),
        (lambda value: value > 0, "is bool, not floating point"),
        (lambda value: value.to(torch.complex64), "is complex64, not floating point"),
        (lambda value: torch.zeros(value.shape, dtype=torch.uint8).view(torch.float4_e2m1fn_x2), "cannot convert"),
        (lambda value: value * torch.nan, "is NaN or infinite"),
        (lambda value: value.index_fill(0, torch.tensor(3), -torch.inf), "is NaN or infinite"),
        (lambda value: value.double() + 1e300, "is NaN or infinite"),
    ],
)
@pytest.mark.parametrize("meta", [False, True])
def test_weights_that_a_model_cannot_compute_with_are_refused(change, part, meta):
    """A dry run, which has a meta model, refuses them too."""
    model = timm.create_model("test_convnext", num_classes=10)
    weights = model.state_dict()
    weights["stages.0.blocks.0.norm.bias"] = change(weights["stages.0.blocks.0.norm.bias"])
    with pytest.raises(UserError, match=f"stages.0.blocks.0.norm.bias in file .*{part}"):
        fit_weights(model.to("meta") if meta else model, weights, "file")


@pytest.mark.parametrize("kind", ["float16", "bfloat16", "float64", "float8_e4m3fn"])
def test_weights_of_other_floating_point_types_are_converted(kind):
    """The counters of BatchNorm are integers, in some files floating-point numbers."""
    trained, fresh = (timm.create_model("test_resnet") for _ in range(2))
    weights = {name: value.to(getattr(torch, kind)) for name, value in trained.state_dict().items()}
    assert fit_weights(fresh, weights, "file") == []
    assert all(torch.equal(fresh.state_dict()[name], value.to(torch.float32)) for name, value in weights.items())
