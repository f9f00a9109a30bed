"""An order of the epoch for remote or spinning storage: neighbours in the shards are used soon after each other.

Blocks of consecutive samples are permuted and laid end to end. Each slice of the global batch has its own run of that
sequence for the epoch, and takes it in windows of several blocks, shuffled inside. So a process reads, for a while, only
from the open blocks of the slices it holds, and no two slices ever read the same block but where their runs meet.

Like the full shuffle it is a pure function of (seed, epoch) and of the recipe's batch, computed only where asked, and
every sample comes at most once an epoch; the remainder that does not fill a global batch is another one each epoch.
"""

from functools import lru_cache

import numpy as np

from data.order import permuted
from recipes.schema import BatchSettings

BLOCK = 32  # consecutive samples; of ImageNet some 3.5 MB
OPEN = 64  # blocks that a slice shuffles together


def shuffled_in_blocks(
    seed: int, epoch: int, samples: int, batch: BatchSettings, step_in_epoch: int, positions: np.ndarray
) -> np.ndarray:
    """Return the sample at each position of the global batch of a step.

    Args:
        samples: number of samples, at least one global batch.
        step_in_epoch: from 0.
        positions: integers ``[n]`` in ``[0, global batch)``.

    Returns:
        int64 ``[n]``.
    """
    run = samples // batch.global_ * batch.slice_size  # samples of a slice in an epoch
    slices = positions // batch.slice_size
    places = step_in_epoch * batch.slice_size + positions % batch.slice_size
    windows = places // (BLOCK * OPEN)
    result = np.empty(len(positions), np.int64)
    for slice_number, window in np.unique(np.stack([slices, windows], axis=1), axis=0).tolist():
        inside = (slices == slice_number) & (windows == window)
        first = window * BLOCK * OPEN
        name = (seed, "window", epoch, slice_number, window)
        result[inside] = (
            slice_number * run + first + permuted(name, min(BLOCK * OPEN, run - first), places[inside] - first)
        )
    blocks, starts = _blocks(seed, epoch, samples)
    at = np.searchsorted(starts, result, side="right") - 1
    return blocks[at] * BLOCK + result - starts[at]


@lru_cache(maxsize=2)
def _blocks(seed: int, epoch: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    """The permuted blocks and where each begins in their sequence, int64; the last block of the shards may be shorter."""
    count = -(-samples // BLOCK)
    blocks = permuted((seed, "blocks", epoch), count, np.arange(count))
    sizes = np.minimum(BLOCK, samples - blocks * BLOCK)
    return blocks, np.cumsum(sizes) - sizes
