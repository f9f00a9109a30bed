"""The last part of the input, done on the training device: normalise, erase, mix.

Only additions and multiplications that are rounded one by one and table look-ups, so a CPU and a GPU make the same bits.
The noise of an erased box is a run of a fixed bank of noise, from a place that the sample's key names: copying it costs
less than drawing it.
"""

from functools import cached_property
from statistics import NormalDist

import numpy as np
import torch
from torch import Tensor

from data.batches import MicroBatch
from data.order import hashed
from recipes.schema import Recipe

_NOISE = 2**20  # numbers in the bank of noise that boxes take their runs from
_QUANTILES = 2**14


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
        """The bank of noise, float32; made when the first box is erased, since evaluation erases none."""
        return _noise_bank(_NOISE + 3 * self.size**2).to(self.device)

    def images(self, batch: MicroBatch) -> Tensor:
        """Return the training images of a micro-batch on its device: float32 ``[n, 3, size, size]``."""
        images = self.normalised(batch.pixels)
        for row, (top, left, height, width) in enumerate(batch.erased):
            if height:
                first = batch.noise_keys[row] % _NOISE
                noise = self.noise[first : first + 3 * height * width].view(3, height, width)
                images[row, :, top : top + height, left : left + width] = noise
        return _mixed(images, batch)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return ``(pixels / 255 - mean) / std``, float32, of uint8 ``[n, 3, height, width]``."""
        return pixels.to(torch.float32).mul_(self.scale).sub_(self.shift)


def _mixed(images: Tensor, batch: MicroBatch) -> Tensor:
    """Mix every image in place with its partner, which is of the same slice and may be one of the extra images at the end."""
    for first, last, mix in batch.mixes:
        partners = batch.partners[first:last]
        if mix.box is not None:
            top, bottom, left, right = mix.box
            box = images[:, :, top:bottom, left:right]
            box[first:last] = box[partners]
        elif mix.lam != 1.0:
            others = images[partners].mul_(1 - mix.lam)
            images[first:last].mul_(mix.lam).add_(others)
    return images[: len(batch.labels)]


def _noise_bank(size: int) -> Tensor:
    """Standard normal noise, float32 ``[size]``, the same on every machine: hashed counters looked up among the quantiles."""
    quantiles = np.array(
        [NormalDist().inv_cdf((rank + 0.5) / _QUANTILES) for rank in range(_QUANTILES)], dtype=np.float32
    )
    return torch.from_numpy(quantiles[hashed(np.arange(size, dtype=np.uint64) + np.uint64(1)) % np.uint64(_QUANTILES)])
