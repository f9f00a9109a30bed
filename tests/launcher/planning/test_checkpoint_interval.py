"""The formula of the checkpoint interval says what a simulated job with random failures shows."""

import random

import pytest

from launcher.planning.checkpoint_interval import best_interval, goodput


def simulated_goodput(interval: float, stall: float, mtbf: float, restart: float, failures: int = 4000) -> float:
    """Share of useful time of a job that fails `failures` times; it can fail while it starts again, too."""
    generator = random.Random(7)
    useful = elapsed = 0.0
    left = 0.0  # of starting again
    for _ in range(failures):
        alive = generator.expovariate(1 / mtbf)
        elapsed += alive
        if alive > left:
            useful += (alive - left) // (interval + stall) * interval
        left = restart
    return useful / elapsed


@pytest.mark.parametrize("stall, mtbf, restart", [(5, 3600, 120), (30, 14_000, 600), (60, 1800, 300), (1, 500_000, 60)])
def test_goodput_agrees_with_a_simulation_within_5_percent(stall, mtbf, restart):
    interval = best_interval(stall, mtbf)
    assert goodput(interval, stall, mtbf, restart) == pytest.approx(
        simulated_goodput(interval, stall, mtbf, restart), rel=0.05
    )


@pytest.mark.parametrize("stall, mtbf", [(5, 3600), (60, 1800)])
def test_no_other_interval_is_better_in_the_simulation(stall, mtbf):
    chosen = best_interval(stall, mtbf)
    best = simulated_goodput(chosen, stall, mtbf, 120)
    for factor in (0.25, 0.5, 2, 4):
        assert simulated_goodput(chosen * factor, stall, mtbf, 120) < best * 1.005
    assert simulated_goodput(chosen * 8, stall, mtbf, 120) < 0.9 * best
