"""A digest of the gradients of backward passes, which needs no copy of them."""

from collections.abc import Iterable
from functools import partial

import torch
from torch import Tensor, nn

_ODD = -0x61C8864680B583EB  # the odd number nearest 2**64 / golden ratio, as a signed integer
_SHIFT = 29
_PART = 2**20  # elements that are hashed at once


class GradientDigest:
    """Adds up hashes of all gradients that are computed inside a ``with`` block.

    Hooks see each parameter's gradient before it is accumulated or all-reduced, under DDP and under ZeRO. They change
    nothing.

    Attributes:
        bits: the sum of the hashes of all elements, int64 on the device; a single flipped bit changes it.
        square: the sum of the squared norms of the gradients of all passes, float64 on the device.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], device: torch.device):
        self._parameters = [parameter for parameter in parameters if parameter.requires_grad]
        self._device = device

    def __enter__(self) -> "GradientDigest":
        self.bits = torch.zeros((), dtype=torch.int64, device=self._device)
        self.square = torch.zeros((), dtype=torch.float64, device=self._device)
        self._hooks = [
            parameter.register_hook(partial(self._add, number)) for number, parameter in enumerate(self._parameters)
        ]
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def _add(self, number: int, gradient: Tensor) -> None:
        # In parts, because the hashes take several times the memory, which is short while a step is computed. Integer
        # arithmetic wraps in the same way on every device, and a sum of integers does not depend on its order.
        for bits in gradient.detach().float().view(torch.int32).flatten().split(_PART):
            hashes = (bits.to(torch.int64) + (number << 32)) * _ODD
            hashes ^= hashes >> _SHIFT & (2 ** (64 - _SHIFT) - 1)
            self.bits += hashes.sum()
        self.square += torch.linalg.vector_norm(gradient.detach(), dtype=torch.float32).double().square()
