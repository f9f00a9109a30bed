"""The last part of the input pipeline, on the training device: normalise, erase, mix.

It uses only table look-ups, and additions and multiplications that are rounded one by one. A CPU and a GPU therefore
compute the same bits. The noise of an erased box is copied from a fixed bank of noise, at an offset that the sample's
key decides: copying costs less than drawing.
"""

from functools import cached_property
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from data.batches import MicroBatch
from data.mixing import UNMIXED
from data.order import hashed
from recipes.schema import Recipe

_NOISE_OFFSETS = 2**20  # offsets into the bank of noise
_QUANTILES = 2**14  # distinct values of the noise


class DevicePreprocessor:
    """Turns the uint8 images of a micro-batch into the float32 images that the model sees."""

    def __init__(self, recipe: Recipe, device: torch.device):
        mean, std = (
            torch.tensor(recipe.input.mean, dtype=torch.float64),
            torch.tensor(recipe.input.std, dtype=torch.float64),
        )
        self.scale = (1 / (255 * std)).float().view(3, 1, 1).to(device)
        self.shift = (mean / std).float().view(3, 1, 1).to(device)
        self.size, self.device = recipe.input.size, device

    @cached_property
    def noise(self) -> Tensor:
        """Float32 noise that fills the boxes. It is made for the first box, because evaluation erases none."""
        return _noise_bank(_NOISE_OFFSETS + 3 * self.size**2).to(self.device)

    def images(self, batch: MicroBatch) -> Tensor:
        """Return the training images of a micro-batch on its device: float32 ``[n, 3, size, size]``."""
        images = self.normalised(batch.pixels)
        for row, (top, left, height, width) in enumerate(batch.erased):
            if height:
                first = batch.noise_keys[row] % _NOISE_OFFSETS
                noise = self.noise[first : first + 3 * height * width].view(3, height, width)
                images[row, :, top : top + height, left : left + width] = noise
        return _mixed(images, batch)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return ``(pixels / 255 - mean) / std``, float32, of uint8 ``[n, 3, height, width]``."""
        return pixels.to(torch.float32).mul_(self.scale).sub_(self.shift)


def _mixed(images: Tensor, batch: MicroBatch) -> Tensor:
    """Mix every image in place with its partner; return the micro-batch's own images, float32 ``[n, 3, size, size]``.

    The partner is in the same slice. It may be one of the extra images at the end, which are dropped here.
    """
    own = images[: len(batch.labels)]
    if all(mix == UNMIXED for _, _, mix in batch.mixes):
        return own
    partners = images[batch.partners]  # a copy, made before any image changes
    for first, last, mix in batch.mixes:
        if mix.box is not None:
            top, bottom, left, right = mix.box
            own[first:last, :, top:bottom, left:right] = partners[first:last, :, top:bottom, left:right]
        elif mix.lam != 1.0:
            own[first:last].mul_(mix.lam).add_(partners[first:last].mul_(1 - mix.lam))
    return own


def _noise_bank(size: int) -> Tensor:
    """Return standard normal noise, float32 ``[size]``: hashed counters select quantiles, alike on every machine."""
    quantiles = np.array(
        [NormalDist().inv_cdf((rank + 0.5) / _QUANTILES) for rank in range(_QUANTILES)], dtype=np.float32
    )
    return torch.from_numpy(quantiles[hashed(np.arange(size, dtype=np.uint64) + np.uint64(1)) % np.uint64(_QUANTILES)])
