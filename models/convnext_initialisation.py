"""The initial weights of ConvNeXt's released code, for networks of ours."""

from torch import nn


def initialise(module: nn.Module) -> None:
    """Initialise the weights of a convolution or linear layer; other modules keep theirs.

    Weights come from a truncated normal with a standard deviation of 0.02, and biases are 0.
    """
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
