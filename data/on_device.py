"""The last part of the input, done on the training device: normalise, erase, mix.

Only additions and multiplications that are rounded one by one and table look-ups, so a CPU and a GPU make the same bits.
"""

from statistics import NormalDist

import torch
from torch import Tensor

from data.batches import MicroBatch
from recipes.schema import Recipe

_TABLE_BITS = 14


class Finisher:
    """Turns the uint8 images of a micro-batch into the float32 images that the model sees."""

    def __init__(self, recipe: Recipe, device: torch.device):
        mean, std = torch.tensor(recipe.input.mean, dtype=torch.float64), torch.tensor(recipe.input.std, dtype=torch.float64)
        self.scale = (1 / (255 * std)).float().view(3, 1, 1).to(device)
        self.shift = (mean / std).float().view(3, 1, 1).to(device)
        self.normal = _normal_table().to(device)

    def images(self, batch: MicroBatch) -> Tensor:
        """Return the training images of a micro-batch on its device: float32 ``[n, 3, size, size]``."""
        images = self.normalised(batch.pixels)
        for row, (top, left, height, width) in enumerate(batch.erased):
            if height:
                noise = self._noise(batch.noise_keys[row], 3 * height * width, images.device)
                images[row, :, top : top + height, left : left + width] = noise.view(3, height, width)
        return _mixed(images, batch)

    def normalised(self, pixels: Tensor) -> Tensor:
        """Return ``(pixels / 255 - mean) / std``, float32, of uint8 ``[n, 3, height, width]``."""
        return pixels.to(torch.float32).mul_(self.scale).sub_(self.shift)

    def _noise(self, noise_key: int, count: int, device: torch.device) -> Tensor:
        """Standard normal noise, float32 ``[count]``: hashed counters looked up in a table of the normal quantiles."""
        counters = torch.arange(count, dtype=torch.int64, device=device)
        mixed = (counters + noise_key) * -0x61C8864680B583EB
        mixed = (mixed ^ (mixed >> 30 & (2**34 - 1))) * -0x40A7B892E31B1A47
        return self.normal[mixed >> 40 & (2**_TABLE_BITS - 1)]


def _mixed(images: Tensor, batch: MicroBatch) -> Tensor:
    """Mix every image of the micro-batch with its partner, which may be one of the extra images after them."""
    rows = len(batch.labels)
    if batch.is_unmixed:
        return images[:rows]
    result = images[:rows].clone()
    for first, last, mix in batch.mixes:
        if mix.lam == 1.0 and mix.box is None:
            continue
        others = images[batch.partners[first:last]]
        if mix.box is None:
            result[first:last] = images[first:last] * mix.lam + others * (1 - mix.lam)
        else:
            top, bottom, left, right = mix.box
            result[first:last, :, top:bottom, left:right] = others[:, :, top:bottom, left:right]
    return result


def _normal_table() -> Tensor:
    size = 2**_TABLE_BITS
    return torch.tensor([NormalDist().inv_cdf((rank + 0.5) / size) for rank in range(size)], dtype=torch.float32)
