"""How well the block shuffle mixes, compared with the full shuffle.

    python -m tests.benchmarks.input_shuffle

Computed, not timed, for ImageNet's length and batch: 1,281,167 images of 1,000 classes, 4096 in 32 slices. The shards
are sorted by class, as other people's may be, or mixed, as `bigbatch shard` writes them. A ratio of 1 is as good as
the full shuffle.
"""

import numpy as np

from data.block_order import shuffled_in_blocks
from data.order import shuffled
from recipes.sections import BatchSettings

SAMPLES, CLASSES, STEPS = 1_281_167, 1000, 64
BATCH = BatchSettings(global_=4096, slices=32)


def full(epoch: int) -> np.ndarray:
    return shuffled(0, epoch, SAMPLES, np.arange(STEPS * BATCH.global_)).reshape(STEPS, -1)


def blocks(epoch: int) -> np.ndarray:
    positions = np.arange(BATCH.global_)
    return np.stack([shuffled_in_blocks(0, epoch, SAMPLES, BATCH, step, positions) for step in range(STEPS)])


def measures(order: np.ndarray, other: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Compare the first steps of an epoch with the same steps of the next one."""
    classes = labels[order]
    of_batches = np.stack([np.bincount(step, minlength=CLASSES) for step in classes])
    of_slices = np.stack([np.bincount(part, minlength=CLASSES) for part in classes.reshape(-1, BATCH.slice_size)])
    return {
        "spread of a class over batches": of_batches.std(),
        "spread of a class over slices": of_slices.std(),
        "neighbours of one class, in 1000": (classes[:, 1:] == classes[:, :-1]).mean() * 1000,
        "samples of the same step an epoch later, in 1000": np.mean(
            [np.isin(a, b).mean() for a, b in zip(order, other)]
        )
        * 1000,
    }


if __name__ == "__main__":
    by_class = np.arange(SAMPLES) * CLASSES // SAMPLES
    for title, labels in (
        ("sorted by class", by_class),
        ("classes mixed", np.random.default_rng(0).permutation(by_class)),
    ):
        print(f"shards {title}")
        of_full, of_blocks = (measures(order(0), order(1), labels) for order in (full, blocks))
        for name, value in of_blocks.items():
            print(f"  {name:<50} blocks {value:8.3f}  full {of_full[name]:8.3f}  ratio {value / of_full[name]:.2f}")
