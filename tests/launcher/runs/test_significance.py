"""Tests and intervals agree with scipy's, and hold what they promise in simulations."""

import math

import numpy as np
import pytest
from scipy import stats

from launcher.runs.intervals import wilson_interval
from launcher.runs.significance import (
    mcnemar_p_value,
    paired_difference,
    seed_difference,
    seed_spread,
    seeds_needed,
)


@pytest.mark.parametrize("only_first, only_second", [(0, 0), (5, 8), (1, 12), (40, 25), (0, 30), (300, 200)])
def test_mcnemars_test_is_the_binomial_test_of_the_images_that_changed(only_first, only_second):
    changed = only_first + only_second
    expected = 1.0
    if changed:
        tail = sum(math.comb(changed, k) for k in range(min(only_first, only_second) + 1)) / 2**changed
        expected = min(1.0, 2 * tail)
    assert mcnemar_p_value(only_first, only_second) == pytest.approx(expected, rel=1e-9)


def test_the_paired_interval_is_that_of_the_paper():
    """Bonett and Price 2012, by hand: 9 and 3 of 100 pairs, with one added to each and two to the pairs."""
    found = paired_difference(9, 3, 100)
    first, second = 10 / 102, 4 / 102
    half = stats.norm.ppf(0.975) * math.sqrt((first + second - (first - second) ** 2) / 102)
    assert found.difference == pytest.approx(-0.06)
    assert found.interval == pytest.approx((second - first - half, second - first + half))
    assert paired_difference(5, 0, 5).interval[0] >= -1 and paired_difference(0, 5, 5).interval[1] <= 1


@pytest.mark.parametrize("images, only_first, only_second", [(100, 0.05, 0.05), (400, 0.02, 0.05), (2000, 0.01, 0.03)])
def test_the_intervals_cover_the_truth_in_95_of_100_simulations(images, only_first, only_second):
    random, difference = np.random.default_rng(0), only_second - only_first
    both = random.multinomial(images, [only_first, only_second, 0.6, 0.4 - only_first - only_second], size=3000)
    paired = [paired_difference_interval(one, images) for one in both[:, :2].tolist()]
    covered = np.mean([low <= difference <= high for low, high in paired])
    assert 0.94 <= covered <= 0.985, covered
    shares = both[:, 2] / images
    wilson = np.mean([low <= 0.6 <= high for low, high in (wilson_interval(share, images) for share in shares)])
    assert 0.935 <= wilson <= 0.965, wilson


def paired_difference_interval(changed: list[int], images: int) -> tuple[float, float]:
    """The interval alone: the exact test of 3,000 simulations would take seconds."""
    from unittest.mock import patch

    with patch("launcher.runs.significance.mcnemar_p_value", return_value=1.0):
        return paired_difference(*changed, images).interval


def test_the_mean_over_seeds_has_scipys_standard_error():
    values = [0.971, 0.968, 0.975, 0.973]
    spread = seed_spread(values)
    assert (spread.runs, spread.mean) == (4, pytest.approx(np.mean(values)))
    assert spread.standard_error == pytest.approx(stats.sem(values))
    assert seed_spread([0.9]).standard_error is None


def test_the_difference_of_two_groups_of_seeds_is_welchs():
    first, second = [0.971, 0.968, 0.975, 0.973], [0.980, 0.976, 0.978]
    found = seed_difference(first, second)
    errors = [stats.sem(group) ** 2 for group in (first, second)]
    freedom = sum(errors) ** 2 / (errors[0] ** 2 / 3 + errors[1] ** 2 / 2)  # Welch and Satterthwaite
    half = stats.t.ppf(0.975, freedom) * math.sqrt(sum(errors))
    assert found.standard_error == pytest.approx(math.sqrt(sum(errors)))
    assert found.interval == pytest.approx((found.difference - half, found.difference + half))
    assert found.p_value == pytest.approx(2 * stats.t.sf(found.difference / math.sqrt(sum(errors)), freedom))
    assert seed_difference([0.9], second) is None and seed_difference([0.9, 0.9], [0.9, 0.9]) is None


@pytest.mark.parametrize("difference, deviation", [(0.004, 0.003), (0.002, 0.002), (0.01, 0.004)])
def test_so_many_seeds_find_the_difference_in_80_of_100_simulations(difference, deviation):
    runs, random = seeds_needed(difference, deviation), np.random.default_rng(0)
    power = []
    for count in (runs - 1, runs):
        first, second = random.normal(0, deviation, (2, 20_000, count))
        power.append(np.mean(stats.ttest_ind(first, second + difference, axis=1).pvalue < 0.05))
    assert power[0] < 0.805 and power[1] > 0.795, power
    assert seeds_needed(0.0, deviation) is None
