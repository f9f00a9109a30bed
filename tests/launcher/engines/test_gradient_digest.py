"""The digest of a gradient is the same however it was computed, and a single bit changes it."""

import pytest
import timm
import torch

from launcher.engines.gradient_digest import GradientDigest
from models.build import checkpoint_activations, compile_blocks

PREPARED = {
    "as it is": lambda model: None,
    "with checkpointed activations": checkpoint_activations,
    "compiled": lambda model: compile_blocks(model, "aot_eager"),
}


@pytest.mark.parametrize("how", [*list(PREPARED)[:2], pytest.param("compiled", marks=pytest.mark.slow)])
def test_a_pass_that_leaves_the_accumulated_gradient_alone_has_the_same_digest(how):
    """As an audit repeats a step's passes: all layers take part, whatever wraps them."""
    torch.manual_seed(0)
    model = timm.create_model("test_convnext", num_classes=10).train().to(memory_format=torch.channels_last)
    PREPARED[how](model)
    parameters, images = list(model.parameters()), torch.randn(4, 3, 64, 64)
    digest = GradientDigest(parameters, torch.device("cpu"))
    with digest:
        model(images).square().sum().backward()
    bits, square = digest.bits.item(), digest.square.item()
    accumulated = [parameter.grad.clone() for parameter in parameters]
    assert square == pytest.approx(sum(gradient.double().square().sum().item() for gradient in accumulated), rel=1e-5)
    with digest:
        torch.autograd.grad(model(images).square().sum(), parameters)
    assert (digest.bits.item(), digest.square.item()) == (bits, square)
    assert all(torch.equal(parameter.grad, gradient) for parameter, gradient in zip(parameters, accumulated))


def test_a_single_bit_changes_it():
    parameter = torch.nn.Parameter(torch.randn(3, 4, 2, 2).contiguous(memory_format=torch.channels_last))
    digest, seen = GradientDigest([parameter], torch.device("cpu")), set()
    for bit in range(32):
        gradient = torch.ones_like(parameter)
        gradient.view(torch.int32)[0, 0, 0, 0] ^= 1 << bit if bit < 31 else -(1 << 31)
        with digest:
            (parameter * gradient).sum().backward()
        seen.add(digest.bits.item())
    assert len(seen) == 32
