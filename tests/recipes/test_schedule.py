"""The learning rate of every step is that of ConvNeXt's code."""

import math

import pytest

from recipes.errors import UserError
from recipes.load import load
from recipes.schedule import Timetable

IMAGENET = 1_281_167


def test_imagenet_1k_at_4096_has_upstreams_steps_and_rates():
    timetable = Timetable(load("convnext_tiny_in1k"), IMAGENET)
    assert (timetable.steps_per_epoch, timetable.total_steps, timetable.warmup_steps) == (312, 93_600, 6_240)
    assert timetable.lr(0) == 0
    assert timetable.lr(6_239) == timetable.lr(6_240) == 4e-3
    assert timetable.lr(93_599) == pytest.approx(1.0000013e-6, rel=1e-7)
    assert timetable.lr(3_000) == pytest.approx(4e-3 * 3_000 / 6_239, rel=1e-12)
    halfway = 6_240 + (93_600 - 6_240) // 2
    assert timetable.lr(halfway) == pytest.approx((4e-3 + 1e-6) / 2, rel=1e-9)


def test_a_step_schedule_divides_by_ten():
    recipe = load("convnext_tiny_in1k", ["schedule.shape=step", "schedule.warmup_epochs=0", "schedule.epochs=90", "optimizer.lr=0.1"])
    timetable = Timetable(recipe, 4096 * 10)
    rates = [timetable.lr(epoch * 10) for epoch in (0, 29, 30, 60, 89)]
    assert all(math.isclose(rate, expected) for rate, expected in zip(rates, (0.1, 0.1, 0.01, 0.001, 0.001)))


def test_fewer_images_than_one_batch_is_refused_with_a_batch_that_works():
    with pytest.raises(UserError, match="batch.global=1024"):
        Timetable(load("convnext_tiny_in1k"), 1438)


def test_the_imagenet_recipe_on_a_small_data_set_is_warned_about():
    warnings = " ".join(Timetable(load("convnext_tiny_in1k", ["schedule.epochs=30"]), 5000).warnings())
    assert "EMA" in warnings and "optimizer steps" in warnings
    assert not Timetable(load("convnext_tiny_in1k"), IMAGENET).warnings()
