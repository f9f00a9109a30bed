"""The block shuffle of an epoch, for remote or spinning storage: neighbours in a shard are read together.

Blocks of consecutive samples are permuted and form one sequence. Each slice of the global batch has its own section of
that sequence for the whole epoch. It goes through the section in windows of several blocks and shuffles the samples of
a window. At any time, a process therefore reads only from the blocks of the current windows of its slices. Two slices
share a block only where their sections meet.

Like the full shuffle, it is a pure function of (seed, epoch) and the recipe's batch, computed only for the positions
asked. Every sample comes at most once per epoch. The remainder that does not fill a global batch differs between
epochs.
"""

from functools import lru_cache

import numpy as np

from data.order import permuted
from recipes.sections import BatchSettings

BLOCK = 32  # consecutive samples; about 3.5 MB of ImageNet, enough to make a ranged read worth its latency
WINDOW = 64  # blocks that a slice shuffles together; with 2,048 samples, classes mix almost as in a full shuffle


def shuffled_in_blocks(
    seed: int, epoch: int, samples: int, batch: BatchSettings, step_in_epoch: int | np.ndarray, positions: np.ndarray
) -> np.ndarray:
    """Return the sample at each position of the global batch of a step.

    Args:
        seed: the recipe's seed.
        epoch: from 0.
        samples: number of samples, at least one global batch.
        batch: the recipe's batch section.
        step_in_epoch: from 0; one for all positions, or integers ``[n]``.
        positions: integers ``[n]`` in ``[0, global batch)``.

    Returns:
        int64 ``[n]``.
    """
    section = samples // batch.global_ * batch.slice_size  # samples of one slice in an epoch
    slices = positions // batch.slice_size
    places = step_in_epoch * batch.slice_size + positions % batch.slice_size
    windows = places // (BLOCK * WINDOW)
    result = np.empty(len(positions), np.int64)
    for slice_number, window in np.unique(np.stack([slices, windows], axis=1), axis=0).tolist():
        inside = (slices == slice_number) & (windows == window)
        first = window * BLOCK * WINDOW
        name = (seed, "window", epoch, slice_number, window)
        result[inside] = (
            slice_number * section
            + first
            + permuted(name, min(BLOCK * WINDOW, section - first), places[inside] - first)
        )
    blocks, starts = _blocks(seed, epoch, samples)
    at = np.searchsorted(starts, result, side="right") - 1
    samples_at: np.ndarray = blocks[at] * BLOCK + result - starts[at]
    return samples_at


@lru_cache(maxsize=2)
def _blocks(seed: int, epoch: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the permuted blocks and the start of each in their sequence, both int64 ``[blocks]``.

    The last block of the shards may be shorter than the others.
    """
    count = -(-samples // BLOCK)
    blocks = permuted((seed, "blocks", epoch), count, np.arange(count))
    sizes = np.minimum(BLOCK, samples - blocks * BLOCK)
    return blocks, np.cumsum(sizes) - sizes
