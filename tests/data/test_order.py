"""The order of an epoch: every sample once, a function of seed and epoch, without state and almost without memory."""

import tracemalloc

import numpy as np
import pytest

from data.order import shuffled


@pytest.mark.parametrize("samples", [1, 2, 3, 5, 16, 17, 1000, 1438, 65_536, 65_537])
def test_every_sample_comes_exactly_once_an_epoch(samples):
    order = shuffled(0, 0, samples, np.arange(samples))
    assert np.array_equal(np.sort(order), np.arange(samples))


def test_any_part_of_an_order_is_the_part_of_the_whole():
    whole = shuffled(3, 5, 10_007, np.arange(10_007))
    for part in (slice(0, 64), slice(5_000, 5_001), slice(10_000, 10_007)):
        assert np.array_equal(shuffled(3, 5, 10_007, np.arange(10_007)[part]), whole[part])


def test_the_order_never_changes():
    """Recorded once: every library version and machine must give the same."""
    assert shuffled(0, 0, 1000, np.arange(8)).tolist() == [310, 383, 942, 769, 44, 613, 313, 917]
    assert shuffled(1, 2, 1_281_167, np.arange(4)).tolist() == [1200096, 206981, 58429, 857084]


def test_epochs_and_seeds_have_unrelated_orders_without_a_pattern():
    samples = 20_000
    orders = [shuffled(seed, epoch, samples, np.arange(samples)) for seed, epoch in ((0, 0), (0, 1), (1, 0))]
    five_errors = 5 / np.sqrt(samples)
    for order in orders:
        assert abs(np.corrcoef(order, np.arange(samples))[0, 1]) < five_errors
        assert abs(np.corrcoef(order[:-1], order[1:])[0, 1]) < five_errors
        assert (order == np.arange(samples)).sum() < 10  # a random permutation has one fixed point on average
        halves = np.histogram(order[:1000], bins=10, range=(0, samples))[0]
        assert halves.min() > 50 and halves.max() < 150
    for a in range(3):
        for b in range(a):
            assert abs(np.corrcoef(orders[a], orders[b])[0, 1]) < five_errors


def test_a_batch_of_14_million_samples_needs_less_than_a_mebibyte():
    positions = np.arange(14_000_000 - 4096, 14_000_000)
    tracemalloc.start()
    order = shuffled(0, 89, 14_000_000, positions)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(order)) == 4096
    assert peak < 2**20
