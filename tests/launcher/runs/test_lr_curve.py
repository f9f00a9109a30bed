"""The suggestion of a range test follows from its curve alone, and the pages and tables say how."""

import math

import pytest

from launcher.runs.line_chart import Chart, Line
from launcher.runs.lr_curve import LrCurve, rising_lr

LRS = [rising_lr(1e-5, 1.0, step, 100) for step in range(100)]


def valley(lowest: float) -> LrCurve:
    """A loss that falls from 2 to 1 until `lowest`, and then rises."""
    return LrCurve(LRS, [1 + min(1.0, 0.5 * abs(math.log10(lr / lowest))) for lr in LRS])


def test_the_learning_rate_rises_exponentially_from_one_bound_to_the_other():
    assert (LRS[0], LRS[-1]) == (1e-5, pytest.approx(1.0))
    assert all(LRS[at + 1] / LRS[at] == pytest.approx(LRS[1] / LRS[0]) for at in range(99))


def test_the_average_of_a_constant_loss_is_that_loss_from_the_first_step_on():
    assert LrCurve(LRS[:5], [3.0] * 5).smoothed == pytest.approx([3.0] * 5)


@pytest.mark.parametrize("lowest", [1e-3, 1e-2, 1e-1])
def test_the_suggestion_is_a_third_of_the_learning_rate_with_the_lowest_loss(lowest):
    """The moving average lags, so it finds the lowest loss a little late: by less than a factor of three."""
    found = valley(lowest).suggestion()
    assert lowest <= found.lowest < 3 * lowest and found.lr == found.lowest / 3
    assert found.steepest < found.lowest and found.is_lowest_inside


def test_a_loss_that_only_falls_has_its_lowest_value_at_the_end():
    found = LrCurve(LRS, [2 - step / 100 for step in range(100)]).suggestion()
    assert found.lowest == LRS[-1] and not found.is_lowest_inside


def test_a_low_loss_of_the_first_steps_is_chance():
    curve = valley(1e-2)
    lucky = LrCurve(LRS, [0.5, *curve.losses[1:]])
    assert lucky.smoothed[0] == min(lucky.smoothed) and lucky.suggestion().lowest == curve.suggestion().lowest


def test_a_loss_that_only_rises_or_too_few_steps_give_no_suggestion():
    assert LrCurve(LRS, [1 + step / 100 for step in range(100)]).suggestion() is None
    assert LrCurve(LRS[:19], [2 - step / 100 for step in range(19)]).suggestion() is None


@pytest.mark.parametrize("losses", [[], [2.0] * 30 + [3.0] * 30, [-1.0, -1.5]])
def test_a_loss_near_its_lowest_has_not_diverged(losses):
    assert not LrCurve([], losses).has_diverged


def test_a_loss_of_four_times_its_lowest_has_diverged():
    assert LrCurve([], [2.0] * 30 + [100.0]).has_diverged


def test_a_logarithmic_axis_gives_each_power_of_ten_the_same_length():
    chart = Chart("loss", [Line("loss", [1e-3, 1e-2, 1e-1, 1.0], [1, 2, 3, 4])], logarithmic=True, marks=[1e-2])
    places, labels = zip(*chart.x_ticks)
    assert labels == ("0.001", "0.01", "0.1", "1") and chart.mark_positions == [places[1]]
    assert places[0] == chart.left and places[-1] == chart.right
    assert places[1] - places[0] == pytest.approx(places[3] - places[2], abs=0.2)


def test_on_a_logarithmic_axis_an_outlier_hides_no_other_value():
    chart = Chart("noise", [Line("noise", [0.0, 1.0, 2.0], [9_000.0, 100.0, 40.0])], log_values=True)
    places, labels = zip(*chart.y_ticks)
    assert labels == ("10", "100", "1000", "10000") and places[0] == chart.bottom and places[-1] == chart.top
    assert places[0] - places[1] == pytest.approx(places[2] - places[3], abs=0.2)
    flat = Chart("noise", [Line("noise", [0.0, 1.0], [5.0, 5.0])], log_values=True)
    assert [label for _, label in flat.y_ticks] == ["5", "10"]
