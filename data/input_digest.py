"""A digest of the inputs of an optimizer step, for the record of a run: 32 bits for each kind of input.

Each image has a hash, and the hashes of a step are added up. So micro-batches and ranks may add them in any order, and
the digest is the same for every cut. The hashes have 32 bits: float64 numbers, which ranks all-reduce anyway, hold
their sum exactly for batches of up to two million images.

The hash of pixels is a sum of 64-bit words, each multiplied by an odd key of its place. So a change of a single bit
always changes it. Other changes stay unnoticed with a probability of about 2**-32, as with any hash of that length.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
from torch import Tensor

from data.mixing import UNMIXED, Mix, partner
from data.order import hashed

# The kinds of input in the order in which they depend on each other. The masks of the model are added by the loop.
INPUT_KINDS = ("samples", "labels", "pixels", "mixing", "masks")
BITS = 32

_STEP = np.uint64(0x9E3779B97F4A7C15)  # the odd number nearest 2**64 / golden ratio
_WORD = 8  # bytes


def batch_digest(
    positions: np.ndarray,
    samples: np.ndarray,
    labels: np.ndarray,
    hashes: np.ndarray,
    erased: Sequence[tuple[int, int, int, int]],
    noise_keys: Sequence[int],
    mixes: Iterable[tuple[int, int, Mix]],
    slice_size: int,
) -> tuple[int, ...]:
    """Return the sums of the hashes of samples, labels, pixels and mixing over the images of a micro-batch.

    Args:
        positions: of the images that are no padding, int64 ``[real]``. They are the first rows of the other arguments,
            which are those of `data.batches.MicroBatch`.
        hashes: those of `pixel_hashes`, uint64 ``[real]``.
        slice_size: of the recipe.
    """
    real = len(positions)
    boxes = np.array(erased[:real], dtype=np.int64).reshape(real, 4)
    noise = np.where(boxes[:, 2] > 0, np.array(noise_keys[:real], dtype=np.int64), 0)
    partners, lam, replaced = positions.copy(), np.ones(real), np.zeros((real, 4), dtype=np.int64)
    for start, stop, mix in mixes:
        if mix != UNMIXED:
            partners[start:stop] = [partner(position, slice_size) for position in positions[start:stop].tolist()]
            lam[start:stop], replaced[start:stop] = mix.lam, mix.box or (0, 0, 0, 0)
    return (
        column_digest(positions, samples[:real]),
        column_digest(positions, labels[:real]),
        column_digest(positions, hashes, noise, *boxes.T),
        column_digest(positions, partners, lam.view(np.uint64), *replaced.T),
    )


def column_digest(*columns: np.ndarray) -> int:
    """Return the sum of the 32-bit hashes of the rows of some integer columns, each int or uint ``[n]``."""
    state = np.zeros(len(columns[0]), dtype=np.uint64)
    for column in columns:
        state = hashed((state ^ column.astype(np.uint64)) + _STEP)
    return int((state >> np.uint64(64 - BITS)).sum())


def pixel_hashes(pixels: Tensor) -> np.ndarray:
    """Return a 64-bit hash of each image, uint64 ``[n]``.

    Args:
        pixels: uint8 ``[n, 3, height, width]``, channels last in memory, on the CPU.
    """
    rows = pixels.permute(0, 2, 3, 1).numpy().reshape(len(pixels), math.prod(pixels.shape[1:]))
    whole = rows.shape[1] // _WORD * _WORD
    keys = _keys(rows.shape[1])
    words, rest = rows[:, :whole].view(np.uint64), rows[:, whole:].astype(np.uint64)
    hashes: np.ndarray = words @ keys[: whole // _WORD] + rest @ keys[whole // _WORD :]
    return hashes


def input_record(sums: Sequence[float]) -> str:
    """Return how a step records the sums of its kinds of input, in the order of `INPUT_KINDS`."""
    return "-".join(f"{int(total) % 2**BITS:08x}" for total in sums)


@lru_cache(maxsize=4)
def _keys(size: int) -> np.ndarray:
    """Return an odd key for every word of an image of `size` bytes, and for every byte after the last word."""
    count = size // _WORD + size % _WORD
    return hashed(np.arange(1, count + 1, dtype=np.uint64) * _STEP) | np.uint64(1)
