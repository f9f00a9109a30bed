"""Mixup and cutmix inside slices: which images are mixed and how, keyed by (seed, step, slice, place in the slice).

The partner of a position is its neighbour: 0 with 1, 2 with 3, and so on inside the slice. timm pairs the first image
with the last. The order of samples is random, so both pair unrelated images. With neighbours, a process that holds part
of a slice needs at most one more image at each end of its part.

Lambda, the choice between mixup and cutmix, and the cutmix box are common to the positions of `mixed_alike`. The modes
are those of timm's `Mixup`, where a slice was the batch of one GPU.
"""

from dataclasses import dataclass

import numpy as np

from recipes.randomness import random_key
from recipes.schema import Recipe


@dataclass(frozen=True)
class Mix:
    """How an image is mixed with its partner.

    Attributes:
        lam: share of the image itself in the result, from 0 to 1; the rest is its partner's. At 1 nothing is mixed.
        box: top, bottom, left, right in pixels (bottom and right exclusive). With a box, the partner's pixels inside it
            replace the image's own (cutmix), and `lam` is the share of the area outside. Without one, pixels are
            blended (mixup).
    """

    lam: float
    box: tuple[int, int, int, int] | None = None


UNMIXED = Mix(1.0)


def partner(position: int, slice_size: int) -> int:
    """Return the position that `position` is mixed with: its neighbour, or itself at the end of a slice of odd size."""
    inside = position % slice_size
    other = inside ^ 1
    return position - inside + other if other < slice_size else position


def mixed_alike(recipe: Recipe, position: int) -> range:
    """Return the positions that share lambda and box with `position`: those of its slice, of its pair, or itself."""
    size = recipe.batch.slice_size
    length = {"batch": size, "pair": 2, "elem": 1}[recipe.mix.mode]
    inside = position % size
    first = inside - inside % length
    return range(position - inside + first, position - inside + min(first + length, size))


def drawn_mix(recipe: Recipe, step: int, position: int) -> Mix:
    """Draw how the image at `position` of the global batch of optimizer step `step` is mixed with its partner."""
    chosen = recipe.mix
    if chosen.mixup == 0 and chosen.cutmix == 0:
        return UNMIXED
    slice_number, place = divmod(mixed_alike(recipe, position).start, recipe.batch.slice_size)
    key = (slice_number,) if chosen.mode == "batch" else (slice_number, place)
    # RandomState and not a Generator: NumPy promises that its streams never change between versions.
    random = np.random.RandomState(random_key(recipe.seed, "mix", step, *key) & 0xFFFFFFFF)
    if random.rand() >= chosen.probability:
        return UNMIXED
    cut = random.rand() < chosen.switch if chosen.mixup > 0 and chosen.cutmix > 0 else chosen.cutmix > 0
    if not cut:
        return Mix(float(random.beta(chosen.mixup, chosen.mixup)))
    box = _box(float(random.beta(chosen.cutmix, chosen.cutmix)), recipe.input.size, random)
    top, bottom, left, right = box
    return Mix(1 - (bottom - top) * (right - left) / recipe.input.size**2, box)


def _box(lam: float, size: int, random: np.random.RandomState) -> tuple[int, int, int, int]:
    """Draw a cutmix box as (top, bottom, left, right): a share ``1 - lam`` of the image's area around a random centre.

    It is clipped to the image, as in the paper (Yun et al., 2019) and in timm, so its area can be smaller.
    """
    side = int(size * np.sqrt(1 - lam))
    row, column = random.randint(0, size), random.randint(0, size)

    def clip(edge: int) -> int:
        return int(np.clip(edge, 0, size))

    return clip(row - side // 2), clip(row + side // 2), clip(column - side // 2), clip(column + side // 2)
