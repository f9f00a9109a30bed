"""The block shuffle: every sample at most once, a function of seed and epoch, neighbours together, mixed classes."""

import numpy as np
import pytest

from data.block_order import BLOCK, WINDOW, shuffled_in_blocks
from recipes.sections import BatchSettings


def epoch_of(samples: int, batch: BatchSettings, epoch: int = 0, seed: int = 0) -> np.ndarray:
    """Return the samples of an epoch, int64 ``[steps, global batch]``."""
    positions = np.arange(batch.global_)
    return np.stack(
        [shuffled_in_blocks(seed, epoch, samples, batch, step, positions) for step in range(samples // batch.global_)]
    )


@pytest.mark.parametrize("samples", [64, 65, 127, 1000, 1438, 20_001])
@pytest.mark.parametrize("slices", [1, 4])
def test_every_sample_comes_at_most_once_and_only_the_remainder_never(samples, slices):
    for epoch in (0, 1):
        order = epoch_of(samples, BatchSettings(global_=64, slices=slices), epoch).ravel()
        assert len(order) == samples // 64 * 64 == len(np.unique(order))
        assert order.min() >= 0 and order.max() < samples


def test_every_epoch_leaves_out_another_remainder():
    left_out = [
        set(range(1438)) - set(epoch_of(1438, BatchSettings(global_=64, slices=4), epoch).ravel().tolist())
        for epoch in range(4)
    ]
    assert len(set().union(*left_out)) > len(left_out[0])


def test_any_part_of_a_step_is_the_part_of_the_whole():
    batch = BatchSettings(global_=128, slices=4)
    whole = epoch_of(5000, batch, epoch=3)[7]
    for part in (slice(0, 5), slice(30, 70), slice(127, 128)):
        assert np.array_equal(shuffled_in_blocks(0, 3, 5000, batch, 7, np.arange(128)[part]), whole[part])


def test_the_order_never_changes():
    found = shuffled_in_blocks(1, 2, 1_281_167, BatchSettings(global_=4096, slices=32), 200, np.array([0, 1, 4095]))
    assert found.tolist() == [679582, 679573, 161826]


def test_a_slice_reads_from_few_blocks_and_no_other_slice_reads_them():
    """An epoch of about a twentieth of ImageNet: this locality is what makes a cache and read-ahead worth while."""
    batch = BatchSettings(global_=1024, slices=4)
    order = epoch_of(64 * 1024, batch).reshape(-1, batch.slices, batch.slice_size)
    blocks = order // BLOCK
    window = BLOCK * WINDOW // batch.slice_size
    assert all(len(np.unique(blocks[:window, number])) <= WINDOW + 1 for number in range(batch.slices))
    blocks_of = [set(np.unique(blocks[:, number]).tolist()) for number in range(batch.slices)]
    shared = sum(len(blocks_of[a] & blocks_of[b]) for a in range(4) for b in range(a))
    assert shared <= batch.slices - 1


def test_batches_of_shards_sorted_by_class_are_mixed_like_those_of_a_full_shuffle():
    """The hardest case: the class counts of a batch spread at most 1.5 times as much as with a full shuffle."""
    samples, classes, batch = 128 * 1024, 16, BatchSettings(global_=4096, slices=32)
    labels = np.arange(samples) * classes // samples

    def spread(order: np.ndarray) -> float:
        return np.std([np.bincount(labels[step], minlength=classes) for step in order])

    full = np.random.default_rng(0).permutation(samples).reshape(-1, 4096)
    assert spread(epoch_of(samples, batch)) < 1.5 * spread(full)


def test_epochs_and_seeds_have_unrelated_orders():
    batch = BatchSettings(global_=64, slices=4)
    orders = [epoch_of(20_032, batch, epoch, seed).ravel() for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    for a in range(3):
        assert abs(np.corrcoef(orders[a], np.arange(len(orders[a])))[0, 1]) < 0.15
        for b in range(a):
            assert (orders[a] == orders[b]).sum() < 10
