"""What one image costs a model: multiply-adds, counted by torch on shapes alone."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(model: nn.Module, size: int) -> int:
    """Return the multiply-adds of one forward pass over one image of `size` pixels a side.

    Convolutions, linear layers and attention's matrix products are counted; norms, activations and sums are not. That is
    how the papers of ResNet, Swin and ConvNeXt count, and what they call FLOPs.

    Args:
        model: on the meta device: nothing is computed.
    """
    was_training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.empty(1, 3, size, size, device="meta"))
    model.train(was_training)
    return counter.get_total_flops() // 2
