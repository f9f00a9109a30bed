"""Mixup and cutmix inside slices: which images are mixed and how, keyed by (seed, step, slice).

The partner of a position is its neighbour: 0 with 1, 2 with 3, and so on inside the slice. timm pairs the first image
with the last. The order of samples is random, so both pair unrelated images. With neighbours, a process that holds part
of a slice needs at most one more image at each end of its part.

Lambda, the choice between mixup and cutmix, and the cutmix box are common to a slice. That is timm's `Mixup` in mode
"batch", where a slice was the batch of one GPU.
"""

from dataclasses import dataclass

import numpy as np

from recipes.randomness import random_key
from recipes.schema import Recipe


@dataclass(frozen=True)
class SliceMix:
    """How the pairs of a slice are mixed.

    Attributes:
        lam: share of the image itself in the result, from 0 to 1; the rest is its partner's. At 1 nothing is mixed.
        box: top, bottom, left, right in pixels (bottom and right exclusive). With a box, the partner's pixels inside it
            replace the image's own (cutmix), and `lam` is the share of the area outside. Without one, pixels are
            blended (mixup).
    """

    lam: float
    box: tuple[int, int, int, int] | None = None


def partner(position: int, slice_size: int) -> int:
    """Return the position that `position` is mixed with: its neighbour, or itself at the end of a slice of odd size."""
    inside = position % slice_size
    other = inside ^ 1
    return position - inside + other if other < slice_size else position


def slice_mix(recipe: Recipe, step: int, slice_number: int) -> SliceMix:
    """Draw how slice `slice_number` of optimizer step `step` is mixed."""
    chosen = recipe.mix
    if chosen.mixup == 0 and chosen.cutmix == 0:
        return SliceMix(1.0)
    # RandomState and not a Generator: NumPy promises that its streams never change between versions.
    random = np.random.RandomState(random_key(recipe.seed, "mix", step, slice_number) & 0xFFFFFFFF)
    if random.rand() >= chosen.probability:
        return SliceMix(1.0)
    cut = random.rand() < chosen.switch if chosen.mixup > 0 and chosen.cutmix > 0 else chosen.cutmix > 0
    if not cut:
        return SliceMix(float(random.beta(chosen.mixup, chosen.mixup)))
    box = _box(float(random.beta(chosen.cutmix, chosen.cutmix)), recipe.input.size, random)
    top, bottom, left, right = box
    return SliceMix(1 - (bottom - top) * (right - left) / recipe.input.size**2, box)


def _box(lam: float, size: int, random: np.random.RandomState) -> tuple[int, int, int, int]:
    """Draw a cutmix box as (top, bottom, left, right): a share ``1 - lam`` of the image's area around a random centre.

    It is clipped to the image, as in the paper (Yun et al., 2019) and in timm, so its area can be smaller.
    """
    side = int(size * np.sqrt(1 - lam))
    row, column = random.randint(0, size), random.randint(0, size)

    def clip(edge: int) -> int:
        return int(np.clip(edge, 0, size))

    return clip(row - side // 2), clip(row + side // 2), clip(column - side // 2), clip(column + side // 2)
