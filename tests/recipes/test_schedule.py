"""The learning rate of every step is that of ConvNeXt's code."""

import math
import re

import pytest

from recipes.errors import UserError
from recipes.load import load
from recipes.schedule import StepSchedule

IMAGENET = 1_281_167


def test_imagenet_1k_at_4096_has_upstreams_steps_and_rates():
    schedule = StepSchedule(load("convnext_tiny_in1k"), IMAGENET)
    assert (schedule.steps_per_epoch, schedule.total_steps, schedule.warmup_steps) == (312, 93_600, 6_240)
    assert schedule.lr(0) == 0
    assert schedule.lr(6_239) == schedule.lr(6_240) == 4e-3
    assert schedule.lr(93_599) == pytest.approx(1.0000013e-6, rel=1e-7)
    assert schedule.lr(3_000) == pytest.approx(4e-3 * 3_000 / 6_239, rel=1e-12)
    halfway = 6_240 + (93_600 - 6_240) // 2
    assert schedule.lr(halfway) == pytest.approx((4e-3 + 1e-6) / 2, rel=1e-9)


def test_a_step_schedule_divides_by_ten():
    recipe = load(
        "convnext_tiny_in1k",
        ["schedule.shape=step", "schedule.warmup_epochs=0", "schedule.epochs=90", "optimizer.lr=0.1"],
    )
    schedule = StepSchedule(recipe, 4096 * 10)
    rates = [schedule.lr(epoch * 10) for epoch in (0, 29, 30, 60, 89)]
    assert all(math.isclose(rate, expected) for rate, expected in zip(rates, (0.1, 0.1, 0.01, 0.001, 0.001)))


def test_fewer_images_than_one_batch_is_refused_with_a_batch_that_works():
    with pytest.raises(UserError, match="use batch.global=512 batch.slices=4 optimizer.lr=1.41e-3$") as caught:
        StepSchedule(load("convnext_tiny_in1k"), 1438)
    advice = str(caught.value).partition("use ")[2].split()
    assert StepSchedule(load("convnext_tiny_in1k", advice), 1438).total_steps == 600
    with pytest.raises(UserError, match="batch.global=16 .* or train finetune_small, a recipe for a few hundred"):
        StepSchedule(load("convnext_tiny_cats_dogs"), 359)
    assert StepSchedule(load("finetune_small"), 359).total_steps == 440
    assert not StepSchedule(load("finetune_small"), 359).warnings()


SMALL_DATA = {  # changes to the ImageNet recipe, training images, what is wrong, and the keys that put it right
    "an EMA that is too long": (["schedule.epochs=100"], 50_000, "averages over 10,000 steps", ["ema.decay"]),
    "few steps": (
        ["schedule.epochs=30", "ema.decay=null"], 5000, "only 30 optimizer steps",
        ["batch.global", "batch.slices", "optimizer.lr", "schedule.epochs"],
    ),
    "a long warm-up": (["schedule.epochs=30"], 1_281_167, "warm-up takes 20 of 30 epochs", ["schedule.warmup_epochs"]),
    "a large remainder": (["ema.decay=null"], 7000, "leaves out 2,904 of 7,000 images", ["batch.global"]),
    "a remainder smaller than the slices": (
        ["ema.decay=null", "batch.global=32"], 50, "leaves out 18 of 50 images", ["batch.global", "batch.slices"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", SMALL_DATA)
def test_what_does_not_fit_the_data_is_said_in_one_line_with_the_number_that_does(case):
    changes, images, part, keys = SMALL_DATA[case]
    warning = next(
        text for text in StepSchedule(load("convnext_tiny_in1k", changes), images).warnings() if part in text
    )
    advice = re.findall(r"([a-z_]+\.[a-z_]+=[\d.]*\d(?:e-\d+)?)", warning)
    assert [text.partition("=")[0] for text in advice] == keys and "\n" not in warning
    assert not any(
        part[:12] in text for text in StepSchedule(load("convnext_tiny_in1k", [*changes, *advice]), images).warnings()
    )


@pytest.mark.parametrize("recipe, images", [("convnext_tiny_in1k", IMAGENET), ("demo", 1438)])
def test_a_recipe_on_the_data_it_is_made_for_is_not_warned_about(recipe, images):
    assert not StepSchedule(load(recipe), images).warnings()


def test_training_images_that_were_held_out_are_said():
    """CIFAR-10's 50,000 become 45,000 by default; ImageNet with a few unreadable images has as many steps as ever."""

    def held_out(recipe: str, images: int) -> list[str]:
        return [text for text in StepSchedule(load(recipe), images).warnings() if "held out" in text]

    (warning,) = held_out("resnet50_cifar10", 45_000)
    assert "45,000 training images instead of 50,000" in warning and "--val-fraction 0" in warning
    assert not held_out("resnet50_cifar10", 50_000) and not held_out("convnext_tiny_in1k", IMAGENET - 100)
    assert not held_out("convnext_tiny_in1k", 100_000), "other images than the recipe was published for"


@pytest.mark.parametrize("power", [1.0, 2.0])
def test_a_polynomial_schedule_has_the_rates_of_timm(power):
    """Value by value with timm's PolyLRScheduler over the steps after the warm-up."""
    import torch
    from timm.scheduler import PolyLRScheduler

    schedule = StepSchedule(
        load("demo", ["schedule.shape=polynomial", f"schedule.power={power}", "schedule.min_lr=1e-5"]), 1438
    )
    steps, peak = schedule.total_steps - schedule.warmup_steps, schedule.recipe.optimizer.lr
    optimizer = torch.optim.SGD([torch.zeros(1)], lr=peak)
    theirs = PolyLRScheduler(optimizer, t_initial=steps, lr_min=1e-5, power=power, t_in_epochs=False)
    for step in range(steps):
        theirs.step_update(step)
        assert schedule.lr(schedule.warmup_steps + step) == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)


def test_a_constant_schedule_stays():
    schedule = StepSchedule(load("demo", ["schedule.shape=constant", "schedule.warmup_epochs=2"]), 1438)
    peak = schedule.recipe.optimizer.lr
    assert schedule.lr(0) == 0
    assert {schedule.lr(step) for step in range(schedule.warmup_steps, schedule.total_steps)} == {peak}


def test_warm_up_stable_decay_stays_and_then_falls_linearly_to_the_floor():
    """The stable part does not depend on the number of epochs, so that branches of one trunk can end anywhere."""
    keys = ["schedule.shape=wsd", "schedule.warmup_epochs=2", "schedule.decay_epochs=3", "schedule.min_lr=0"]
    short, long = (StepSchedule(load("demo", [*keys, f"schedule.epochs={epochs}"]), 1438) for epochs in (10, 20))
    peak, begin = short.recipe.optimizer.lr, 7 * short.steps_per_epoch
    assert [short.lr(step) for step in range(begin + 1)] == [long.lr(step) for step in range(begin + 1)]
    assert short.lr(begin) == peak
    falls = [short.lr(step) for step in range(begin, short.total_steps)]
    drops = [one - other for one, other in zip(falls, falls[1:])]
    assert drops == pytest.approx([peak / (3 * short.steps_per_epoch)] * len(drops))
    assert falls[-1] == pytest.approx(peak / (3 * short.steps_per_epoch))


def test_a_decay_that_does_not_fit_the_run_is_refused():
    with pytest.raises(UserError, match="do not fit schedule.epochs 10: add schedule.epochs=13 or more"):
        load(
            "demo", ["schedule.shape=wsd", "schedule.epochs=10", "schedule.warmup_epochs=3", "schedule.decay_epochs=10"]
        )
