"""Which sample stands at which position of an epoch: a keyed bijection, computed only where asked.

The order of an epoch is a permutation of the samples that is never written down. A Feistel network turns a position into
a sample by a few rounds of keyed hashing, in integer arithmetic that is defined here and therefore the same with every
library version. It needs no memory, whatever the number of samples, and any position costs the same, so a run starts at
step 100,000 as fast as at step 0.

A Feistel network permutes a power of four; where that is more than the number of samples, a result outside is sent through
again until it falls inside (cycle walking), which keeps the map a bijection.
"""

import numpy as np

from recipes.randomness import random_key

_ROUNDS = 6  # three make a pseudo-random permutation (Luby and Rackoff), more cost little


def shuffled(seed: int, epoch: int, samples: int, positions: np.ndarray) -> np.ndarray:
    """Return the sample at each position of the epoch.

    Args:
        seed: the recipe's seed.
        epoch: from 0.
        samples: number of samples, at least 1.
        positions: integers ``[n]`` in ``[0, samples)``.

    Returns:
        int64 ``[n]``; over all positions each sample comes exactly once.
    """
    return permuted((seed, "order", epoch), samples, positions)


def permuted(name: tuple, samples: int, positions: np.ndarray) -> np.ndarray:
    """Return where the permutation of that name, the arguments of a key, sends each position: int64 ``[n]``."""
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
    """SplitMix64's finaliser: uint64 of any shape, each mixed on its own."""
    numbers = (numbers ^ (numbers >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    numbers = (numbers ^ (numbers >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return numbers ^ (numbers >> np.uint64(31))
