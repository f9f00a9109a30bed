"""How a recipe's global batch is cut: processes × micro-batch × accumulation steps, padded if that does not divide it.

Rank ``r`` has positions ``r * share`` to ``(r + 1) * share`` (exclusive) of the global batch, in micro-batches of
consecutive positions. Positions beyond the batch have weight zero, so the loss stays the mean over the recipe's
batch.
"""

import re
from dataclasses import dataclass

from recipes.errors import UserError
from recipes.schema import Recipe

LARGEST_UNPLANNED = 64  # images in a micro-batch if neither the user nor a plan gives a number


@dataclass(frozen=True)
class Cut:
    """One way to cut a global batch."""

    global_batch: int
    world_size: int
    micro_batch: int
    accumulation: int

    @property
    def share(self) -> int:
        """Positions of the global batch per rank, padding included."""
        return self.micro_batch * self.accumulation

    @property
    def padding(self) -> int:
        """Positions of all ranks beyond the global batch."""
        return self.world_size * self.share - self.global_batch

    def micro_batches(self, rank: int) -> range:
        """Return the numbers of a rank's micro-batches among those of the global batch."""
        return range(rank * self.accumulation, (rank + 1) * self.accumulation)

    def first_position(self, rank: int) -> int:
        """Return the first position of a rank in the global batch."""
        return rank * self.share

    def __str__(self) -> str:
        processes = "1 process" if self.world_size == 1 else f"{self.world_size} processes"
        steps = "1 accumulation step" if self.accumulation == 1 else f"{self.accumulation} accumulation steps"
        padding = f" − {self.padding} padding" if self.padding else ""
        return f"{self.global_batch} = {processes} × {self.micro_batch} × {steps}{padding}"


def parse_cut(text: str) -> tuple[int, int] | None:
    """Return the processes and the micro-batch of a written `Cut`, as a run records it; None for other text."""
    found = re.match(r"\d+ = (\d{1,6}) process(?:es)? × (\d{1,9}) ×", text)
    return (int(found[1]), int(found[2])) if found else None


def cut_batch(recipe: Recipe, world_size: int, micro_batch: int | None, largest: int, unit: int = 1) -> Cut:
    """Return the cut of the recipe's batch over `world_size` processes.

    Args:
        recipe: its batch section counts.
        world_size: number of processes.
        micro_batch: images per forward pass; None: as few accumulation steps as `largest` allows, then the least
            padding.
        largest: most images per forward pass if `micro_batch` is None.
        unit: a micro-batch holds a multiple of this number of images (`unit_of_cut`).

    Raises:
        UserError: this cut is impossible; the message names the possible numbers.
    """
    batch = recipe.batch.global_
    parts = batch // unit
    if world_size > parts:
        raise UserError(
            f"a global batch of {batch} is too small for {world_size} processes: start at most {parts}"
            + (f", so that each has whole statistics batches of {unit}" if unit > 1 else "")
        )
    share = -(-parts // world_size) * unit
    if micro_batch is not None:
        if micro_batch < 1 or micro_batch > share:
            raise UserError(
                f"--micro-batch {micro_batch} is impossible: each of {world_size} processes has {share} of the {batch} "
                f"images of a step; use 1 to {share}"
            )
        if micro_batch % unit:
            raise UserError(
                f"--micro-batch {micro_batch} would change what BatchNorm computes: it must hold whole statistics "
                f"batches; use a multiple of {unit} (batch.statistics)"
            )
    else:
        units, largest_units = share // unit, max(1, largest // unit)
        accumulation = -(-units // largest_units)
        micro_batch = -(-units // accumulation) * unit
    return Cut(batch, world_size, micro_batch, -(-share // micro_batch))


def smaller_cut(recipe: Recipe, cut: Cut, unit: int) -> Cut | None:
    """Return the cut with at most half the micro-batch, or None if a micro-batch cannot be smaller."""
    if cut.micro_batch <= unit:
        return None
    return cut_batch(recipe, cut.world_size, None, cut.micro_batch // 2, unit)


def unit_of_cut(recipe: Recipe, has_batch_norm: bool) -> int:
    """Return the unit of a micro-batch in images: the size of BatchNorm's statistics batch, or 1 without BatchNorm."""
    return recipe.batch.statistics_size if has_batch_norm else 1


def cut_for_model(recipe: Recipe, world_size: int, micro_batch: int | None, has_batch_norm: bool) -> Cut:
    """Return the cut of the recipe's batch for a model: one with BatchNorm layers needs whole statistics batches.

    Raises:
        UserError: as in `cut_batch`.
    """
    return cut_batch(recipe, world_size, micro_batch, LARGEST_UNPLANNED, unit_of_cut(recipe, has_batch_norm))
