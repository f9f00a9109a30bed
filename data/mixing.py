"""Mixup and cutmix inside slices: who is mixed with whom and how, keyed by (seed, step, slice).

The partner of a position is its neighbour: 0 with 1, 2 with 3, and so on inside the slice. timm pairs first with last; as
the order is random, both pair strangers, but with neighbours a process that holds part of a slice needs at most one image
beyond each end of its part. Lambda, the choice between mixup and cutmix and the cutmix box are the slice's, as in timm's
`Mixup` in mode "batch", where a slice was one GPU's batch.
"""

from dataclasses import dataclass

import numpy as np

from recipes.randomness import random_key
from recipes.schema import Recipe


@dataclass(frozen=True)
class SliceMix:
    """How the pairs of a slice are mixed: ``lam`` is the share of the image itself, the rest is the partner's.

    With a box (top, bottom, left, right, in pixels) the partner's pixels inside it replace the image's own (cutmix) and
    `lam` is the share of the area that is left; without, pixels are blended (mixup). ``lam == 1`` leaves all as it is.
    """

    lam: float
    box: tuple[int, int, int, int] | None = None


def partner(position: int, slice_size: int) -> int:
    """The position mixed with `position`, in the same slice; itself for the odd one out at a slice's end."""
    inside = position % slice_size
    other = inside ^ 1
    return position - inside + other if other < slice_size else position


def slice_mix(recipe: Recipe, step: int, slice_number: int) -> SliceMix:
    """Draw how slice `slice_number` of optimizer step `step` is mixed."""
    chosen = recipe.mix
    if chosen.mixup == 0 and chosen.cutmix == 0:
        return SliceMix(1.0)
    random = np.random.RandomState(
        random_key(recipe.seed, "mix", step, slice_number) & 0xFFFFFFFF
    )  # its streams never change
    if random.rand() >= chosen.probability:
        return SliceMix(1.0)
    cut = random.rand() < chosen.switch if chosen.mixup > 0 and chosen.cutmix > 0 else chosen.cutmix > 0
    if not cut:
        return SliceMix(float(random.beta(chosen.mixup, chosen.mixup)))
    box = _box(float(random.beta(chosen.cutmix, chosen.cutmix)), recipe.input.size, random)
    top, bottom, left, right = box
    return SliceMix(1 - (bottom - top) * (right - left) / recipe.input.size**2, box)


def _box(lam: float, size: int, random: np.random.RandomState) -> tuple[int, int, int, int]:
    """A box of area ``1 - lam`` of the image around a random centre, clipped to the image (the cutmix paper, as timm)."""
    side = int(size * np.sqrt(1 - lam))
    row, column = random.randint(0, size), random.randint(0, size)

    def clip(edge):
        return int(np.clip(edge, 0, size))

    return clip(row - side // 2), clip(row + side // 2), clip(column - side // 2), clip(column + side // 2)
