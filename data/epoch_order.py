"""Which image is at each position of a step, and which copy of it where images are repeated.

Repeated augmentation (Hoffer et al., arXiv 1901.09335) shows an image several times in a batch, each time augmented
anew. An epoch keeps its number of steps, so it shows a part of the images, and each of these `augment.repeats` times.
The copies lie in different slices, as `RepeatAugSampler` of timm gives them to different GPUs. Copies in one slice
would be mixed with each other.
"""

import numpy as np

from data.block_order import shuffled_in_blocks
from data.order import shuffled
from recipes.schema import Recipe
from recipes.sections import BatchSettings


def ordered_samples(
    recipe: Recipe, samples: int, epoch: int, step_in_epoch: int, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the sample at each position of the global batch of a step, and which copy of it that is.

    Args:
        samples: number of training images, at least one global batch.
        epoch: from 0.
        step_in_epoch: from 0.
        positions: integers ``[n]`` in ``[0, global batch)``.

    Returns:
        int64 ``[n]`` and int64 ``[n]``, copies counted from 0.
    """
    batch, repeats, seed = recipe.batch, recipe.augment.repeats, recipe.seed
    by_blocks = recipe.data.shuffle == "blocks"
    if repeats == 1:
        copies = np.zeros(len(positions), np.int64)
        if by_blocks:
            return shuffled_in_blocks(seed, epoch, samples, batch, step_in_epoch, positions), copies
        return shuffled(seed, epoch, samples, step_in_epoch * batch.global_ + positions), copies
    places, copies = repeated_places(batch, repeats, step_in_epoch, positions)
    if by_blocks:
        # As many sections of the block shuffle as there are slices, and consecutive images come from different ones.
        one_each = BatchSettings(global_=batch.slices, slices=batch.slices)
        steps, sections = np.divmod(places, batch.slices)
        return shuffled_in_blocks(seed, epoch, samples, one_each, steps, sections), copies
    return shuffled(seed, epoch, samples, places), copies


def repeated_places(
    batch: BatchSettings, repeats: int, step_in_epoch: int, positions: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return the place of each position's image in the epoch's order of distinct images, and which copy it is.

    The slices take images in turn, as the GPUs do in timm's sampler. So consecutive copies are in different slices.

    Returns:
        int64 ``[n]`` and int64 ``[n]``.
    """
    slices, inside = np.divmod(positions, batch.slice_size)
    turn = step_in_epoch * batch.global_ + inside * batch.slices + slices
    places, copies = np.divmod(turn, repeats)
    return places.astype(np.int64), copies.astype(np.int64)
