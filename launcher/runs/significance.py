"""Whether two accuracies differ by more than chance: on the same images, and over several seeds.

Tests and intervals are two-sided, at 5 % and 95 %.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, variance

from launcher.runs.intervals import Z_95

_POWER = 0.8  # of the test for which `seeds_needed` asks
_MOST_SEEDS = 10_000


@dataclass(frozen=True)
class PairedDifference:
    """The difference of two accuracies that were measured on the same images, the second minus the first.

    Attributes:
        only_first: number of images that only the first gets right.
        only_second: number of images that only the second gets right.
        difference: of the accuracies, in -1..1.
        interval: its 95 % interval.
        p_value: of McNemar's exact test.
    """

    only_first: int
    only_second: int
    difference: float
    interval: tuple[float, float]
    p_value: float


def paired_difference(only_first: int, only_second: int, images: int) -> PairedDifference:
    """Return the difference of two accuracies on the same images.

    The interval is Wald's with the adjustment of Bonett and Price (2012), which Fagerland, Lydersen and Laake (2014)
    recommend for paired proportions.

    Args:
        only_first: number of images that only the first gets right.
        only_second: number of images that only the second gets right.
        images: that both classified, at least 1.
    """
    first, second = (only_first + 1) / (images + 2), (only_second + 1) / (images + 2)
    half = Z_95 * math.sqrt((first + second - (second - first) ** 2) / (images + 2))
    return PairedDifference(
        only_first,
        only_second,
        (only_second - only_first) / images,
        (max(-1.0, second - first - half), min(1.0, second - first + half)),
        mcnemar_p_value(only_first, only_second),
    )


def mcnemar_p_value(only_first: int, only_second: int) -> float:
    """Return the p-value of McNemar's exact test: a binomial test on the images that only one of the two gets right."""
    from scipy.stats import binomtest  # takes a second to import

    changed = only_first + only_second
    return float(binomtest(only_first, changed).pvalue) if changed else 1.0


@dataclass(frozen=True)
class SeedSpread:
    """The mean over runs that differ in their seed only.

    Attributes:
        runs: their number.
        mean: of their accuracies.
        standard_error: of the mean; None for a single run.
    """

    runs: int
    mean: float
    standard_error: float | None


def seed_spread(values: Sequence[float]) -> SeedSpread:
    """Return the mean of at least one value and its standard error."""
    error = math.sqrt(variance(values) / len(values)) if len(values) > 1 else None
    return SeedSpread(len(values), fmean(values), error)


@dataclass(frozen=True)
class SeedDifference:
    """The difference of two means over seeds, the second minus the first.

    Attributes:
        difference: of the means.
        standard_error: of the difference.
        interval: its 95 % interval, by Welch's t-test, which allows the two to spread differently.
        p_value: of that test.
        seeds_needed: runs of each side with which the test finds a difference of this size in 80 % of cases; None if
            there is no difference, or if it takes more than 10,000.
    """

    difference: float
    standard_error: float
    interval: tuple[float, float]
    p_value: float
    seeds_needed: int | None


def seed_difference(first: Sequence[float], second: Sequence[float]) -> SeedDifference | None:
    """Return the difference of the means of two groups of runs; None if one has a single run, or if nothing varies."""
    if min(len(first), len(second)) < 2 or not variance(first) + variance(second):
        return None
    from scipy.stats import ttest_ind  # takes a second to import

    test = ttest_ind(second, first, equal_var=False)
    low, high = test.confidence_interval(0.95)
    one, other = variance(first), variance(second)
    difference = fmean(second) - fmean(first)
    return SeedDifference(
        difference,
        math.sqrt(one / len(first) + other / len(second)),
        (float(low), float(high)),
        float(test.pvalue),
        seeds_needed(difference, math.sqrt((one + other) / 2)),
    )


def seeds_needed(difference: float, deviation: float) -> int | None:
    """Return the smallest number of runs of each side with which a t-test has a power of 80 % at 5 %.

    Args:
        difference: of the means that is to be found.
        deviation: the standard deviation over seeds, at most slightly different on the two sides.

    Returns:
        At least 2; None if it is more than 10,000.
    """
    from scipy.stats import nct, t

    def power(runs: int) -> float:
        freedom, shift = 2 * runs - 2, abs(difference) / deviation * math.sqrt(runs / 2)
        limit = t.ppf(0.975, freedom)
        return float(nct.sf(limit, freedom, shift) + nct.cdf(-limit, freedom, shift))

    low, high = 1, 2
    while power(high) < _POWER:
        low, high = high, 2 * high
        if high > _MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= _POWER else (middle, high)
    return high
