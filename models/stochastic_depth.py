"""Stochastic depth whose mask depends on what is trained, not on how the batch is cut.

The mask of the image at `position` of the global batch of optimizer step `step`, in residual branch `branch`, is a hash of
(seed, step, branch, position) compared with the branch's rate. No generator is read, so micro-batch size, rank and
restarts cannot change it, and recomputing activations draws it again exactly.

The masks of all branches are drawn in one go before a forward pass; a branch only multiplies by its row. That leaves
nothing random inside the model: torch.compile, activation checkpointing, DDP and ZeRO see a plain multiplication.
"""

import torch
from timm.layers import DropPath
from torch import Tensor, nn

from recipes.randomness import random_key

_UNIFORM_BITS = 24  # a float32 holds these exactly


class StochasticDepth:
    """The masks of one model. `attach` makes it; call `draw` before each forward pass in training mode."""

    def __init__(self, seed: int, rates: list[float]):
        self.seed = seed
        self.branches = [KeyedDropPath(rate) for rate in rates]
        self._thresholds = torch.tensor(
            [round(rate * 2**_UNIFORM_BITS) for rate in rates], dtype=torch.int64, device="cpu"
        )
        self._kept_scale = torch.tensor([1 / (1 - rate) for rate in rates], dtype=torch.float32, device="cpu")

    @property
    def rates(self) -> list[float]:
        return [branch.rate for branch in self.branches]

    def draw(self, step: int, positions: Tensor) -> Tensor:
        """Draw the masks of one micro-batch: float32 ``[branches, len(positions)]``, 0 or 1 / (1 - rate).

        Args:
            step: optimizer step, from 0.
            positions: int64 ``[n]``, positions in the global batch, on the device of the model.
        """
        device = positions.device
        keys = torch.tensor(
            [random_key(self.seed, "drop path", step, branch) for branch in range(len(self.branches))],
            dtype=torch.int64,
        )
        if device.type == "cuda":
            keys = keys.pin_memory().to(
                device, non_blocking=True
            )  # from other memory the copy would wait for all that is computed
        self._thresholds, self._kept_scale = self._thresholds.to(device), self._kept_scale.to(device)  # moved once
        uniform = _hash(keys[:, None] ^ _hash(positions)[None, :]) & (2**_UNIFORM_BITS - 1)
        kept = uniform >= self._thresholds[:, None]
        return self.use(kept * self._kept_scale[:, None])

    def use(self, scales: Tensor) -> Tensor:
        """Let each branch multiply by its row of `scales`, ``[branches, n]``; return them."""
        for branch, scale in zip(self.branches, scales.unbind()):
            branch.scale = scale
        return scales


class KeyedDropPath(nn.Module):
    """Takes the place of timm's DropPath: drops the residual branch of whole images."""

    def __init__(self, rate: float):
        super().__init__()
        self.rate = rate
        self.scale: Tensor | None = None  # float32 [n], of the micro-batch at hand

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * self.scale.to(x.dtype).view(-1, *[1] * (x.ndim - 1))

    def extra_repr(self) -> str:
        return f"rate={self.rate:.3f}"


def attach(model: nn.Module, seed: int) -> StochasticDepth:
    """Replace every timm DropPath of `model` by a keyed one of the same rate; return the object that draws their masks."""
    places = [(name, module) for name, module in model.named_modules() if isinstance(module, DropPath)]
    depth = StochasticDepth(seed, [module.drop_prob for _, module in places])
    for (name, _), branch in zip(places, depth.branches):
        parent, _, child = name.rpartition(".")
        setattr(model.get_submodule(parent), child, branch)
    return depth


def _hash(numbers: Tensor) -> Tensor:
    """SplitMix64's finaliser on int64 (arithmetic wraps the same way on every device); non-negative int64 of 63 bits."""
    numbers = numbers * -0x61C8864680B583EB  # the odd number nearest 2**64 / golden ratio, as a signed integer
    numbers = (numbers ^ (numbers >> 30 & (2**34 - 1))) * -0x40A7B892E31B1A47
    numbers = (numbers ^ (numbers >> 27 & (2**37 - 1))) * -0x6B2FB644ECCEEE15
    return (numbers ^ (numbers >> 31 & (2**33 - 1))) & (2**63 - 1)
