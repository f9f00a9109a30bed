"""Measures the gradient noise scale during training, from gradients that a step computes anyway.

The gradient of the whole batch is compared with those of parts of it. With several ranks, the parts are their shares,
whose gradients exist before the all-reduce. With one rank, the part is the beginning of the batch, whose gradient is
accumulated before more micro-batches are added to it.

A part consists of whole slices. The images of a slice share the lambda of their mixing and are mixed with each other,
so half a slice would say less about the variance than the same number of independent images.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from launcher.cut import Cut, unit_of_cut
from launcher.engines.base import Engine
from launcher.runs.noise_scale import NoiseEstimate, estimate_noise
from recipes.schema import Recipe


@dataclass(frozen=True)
class BatchParts:
    """The parts of a global batch whose gradients are measured.

    Attributes:
        images: the number of images of each rank's part; 0 for a rank that has none.
        micro_batches: after so many micro-batches of a step, a rank's gradient is that of its part.
    """

    images: list[int]
    micro_batches: int

    @property
    def mean_size(self) -> float:
        """The mean number of images of a part."""
        return sum(self.images) / sum(size > 0 for size in self.images)


def batch_parts(recipe: Recipe, cut: Cut, has_batch_norm: bool) -> BatchParts | None:
    """Return the parts of the batch that this cut can measure; None if it makes no part of whole slices."""
    if recipe.augment.repeats > 1:  # copies of an image are in different slices of a step
        return None
    unit = _independent_images(recipe, has_batch_norm)
    if cut.world_size == 1:
        micro_batches = math.lcm(unit, cut.micro_batch) // cut.micro_batch
        images = micro_batches * cut.micro_batch
        return BatchParts([images], micro_batches) if images < cut.global_batch else None
    sizes = []
    for rank in range(cut.world_size):
        first = cut.first_position(rank)
        stop = min(first + cut.share, cut.global_batch)
        sizes.append(stop - first if first < stop and first % unit == stop % unit == 0 else 0)
    return BatchParts(sizes, cut.accumulation) if any(sizes) else None


def _independent_images(recipe: Recipe, has_batch_norm: bool) -> int:
    """Return the size of the blocks of images whose gradients do not depend on each other's images."""
    mixed = recipe.mix.probability > 0 and (recipe.mix.mixup > 0 or recipe.mix.cutmix > 0)
    return math.lcm(recipe.batch.slice_size if mixed else 1, unit_of_cut(recipe, has_batch_norm))


def why_not_measured(recipe: Recipe, cut: Cut, has_batch_norm: bool) -> str | None:
    """Return a sentence that says why no noise scale is measured and what would help; None if it is measured."""
    if recipe.engine.zero:
        return "the noise scale is not measured under ZeRO, where no rank has a whole gradient of its own"
    if recipe.augment.repeats > 1:
        return "the noise scale is not measured with augment.repeats, whose copies make slices depend on each other"
    if batch_parts(recipe, cut, has_batch_norm):
        return None
    unit = _independent_images(recipe, has_batch_norm)
    units = cut.global_batch // unit
    if units <= 1:
        return "the noise scale is not measured, because the whole batch is one slice: batch.slices divides it"
    if cut.world_size > 1:
        return (
            f"the noise scale is not measured, because no process has whole slices of {unit} images: a number of "
            f"processes that divides {units} makes it measurable"
        )
    return f"the noise scale is not measured with this cut: --micro-batch {units // 2 * unit} makes it measurable"


class NoiseMeter:
    """Measures one cut of the batch. All ranks use it in the same way, because `part_square` is summed over ranks."""

    def __init__(self, engine: Engine, cut: Cut, has_batch_norm: bool):
        self._engine, self._cut = engine, cut
        self.parts = None if engine.recipe.engine.zero else batch_parts(engine.recipe, cut, has_batch_norm)
        self._square: Tensor | None = None

    def after_micro_batch(self, number: int) -> None:
        """Measure the part if it is complete after micro-batch `number`, counted from 0, of a step."""
        if self.parts and self._cut.world_size == 1 and number + 1 == self.parts.micro_batches:
            self._square = self._engine.local_gradient_square()

    def part_square(self) -> Tensor:
        """Return this rank's summand of the parts' mean squared norm, a float64 scalar on the device.

        The mean is weighted by images. A rank's gradient is scaled so that the mean over ranks is the gradient of the
        batch. Call it once per step, after the gradients are all-reduced.
        """
        device, rank = self._engine.accelerator.device, self._engine.accelerator.process_index
        if self.parts is None or self.parts.images[rank] == 0:
            return torch.zeros((), dtype=torch.float64, device=device)
        square = self._engine.local_gradient_square() if self._square is None else self._square
        self._square = None
        images, total = self.parts.images[rank], sum(self.parts.images)
        scale = self._cut.global_batch / (self._cut.world_size * images)
        return square * (scale**2 * images / total)

    def estimate(self, part_square: float, gradient_norm: float) -> NoiseEstimate | None:
        """Return the estimates of a step; None if nothing was measured or an fp16 gradient has overflowed.

        Args:
            part_square: the sum of `part_square()` over all ranks.
            gradient_norm: that of the gradient of the global batch.
        """
        if self.parts is None or not math.isfinite(gradient_norm) or not math.isfinite(part_square):
            return None
        return estimate_noise(part_square, self.parts.mean_size, gradient_norm**2, self._cut.global_batch)
