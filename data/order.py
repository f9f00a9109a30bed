"""The order of samples in an epoch: a keyed permutation, computed only for the positions asked.

The permutation is never stored. A Feistel network maps a position to a sample by a few rounds of keyed hashing. Its
integer arithmetic is defined here, so it is the same with every version of every library. It needs no memory, whatever
the number of samples. Every position costs the same, so a run starts at step 100,000 as fast as at step 0.

A Feistel network permutes a set whose size is a power of four. A result that is not below the number of samples is
mapped again until it is (cycle walking), which keeps the map a bijection.
"""

import numpy as np

from recipes.randomness import random_key

_ROUNDS = 6  # three are enough for a pseudo-random permutation (Luby and Rackoff, 1988); more cost little


def shuffled(seed: int, epoch: int, samples: int, positions: np.ndarray) -> np.ndarray:
    """Return the sample at each position of the epoch.

    Args:
        seed: the recipe's seed.
        epoch: from 0.
        samples: number of samples, at least 1.
        positions: integers ``[n]`` in ``[0, samples)``.

    Returns:
        int64 ``[n]``; over all positions of the epoch, each sample occurs exactly once.
    """
    return permuted((seed, "order", epoch), samples, positions)


def permuted(name: tuple[int, str, *tuple[int, ...]], samples: int, positions: np.ndarray) -> np.ndarray:
    """Return where the permutation of ``range(samples)`` called `name` maps each position: int64 ``[n]``.

    Args:
        name: arguments of `random_key`; every name has its own permutation.
    """
    half_bits = max(1, ((samples - 1).bit_length() + 1) // 2)
    round_keys = [np.uint64(random_key(*name, number)) for number in range(_ROUNDS)]
    result = _feistel(np.asarray(positions, dtype=np.uint64), half_bits, round_keys)
    outside = result >= samples
    while outside.any():
        result[outside] = _feistel(result[outside], half_bits, round_keys)
        outside = result >= samples
    return result.astype(np.int64)


def _feistel(numbers: np.ndarray, half_bits: int, round_keys: list[np.uint64]) -> np.ndarray:
    shift, mask = np.uint64(half_bits), np.uint64((1 << half_bits) - 1)
    left, right = numbers >> shift, numbers & mask
    for round_key in round_keys:
        left, right = right, left ^ (hashed(right ^ round_key) & mask)
    return left << shift | right


def hashed(numbers: np.ndarray) -> np.ndarray:
    """Return the hash of each number, uint64 of the same shape: SplitMix64's finaliser (Steele et al., 2014)."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = numbers ^ (numbers >> np.uint64(31))
    return mixed
