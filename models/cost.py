"""The multiply-adds that a model needs for one image, counted by torch from shapes alone."""

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode


def multiply_adds(model: nn.Module, size: int) -> int:
    """Return the multiply-adds of one forward pass over one image of `size` pixels a side.

    Convolutions, linear layers and the matrix products of attention are counted; norms, activations and additions are
    not.
    The papers of ResNet, Swin and ConvNeXt count in the same way and call the result FLOPs.

    Args:
        model: on the meta device, so that nothing is computed.
    """
    was_training = model.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.empty(1, 3, size, size, device="meta"))
    model.train(was_training)
    return counter.get_total_flops() // 2
