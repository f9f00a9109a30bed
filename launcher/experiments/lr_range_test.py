"""`bigbatch lr`: the first steps of a recipe with a learning rate that rises from step to step, to see which it bears.

Everything else is the recipe's own: order of the images, augmentation, model, batch, optimizer and loss. So the losses
do not depend on the cut. No run directory is made and nothing is saved.
"""

import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from launcher.engines.base import make_accelerator
from launcher.planning.accelerate_config import with_accelerate_config
from launcher.planning.auto_engine import choose_engine_here
from launcher.recipe_shards import open_shards
from launcher.runs.lr_curve import LrCurve, rising_lr
from launcher.runs.metrics import Metrics
from launcher.training.event_log import EventLog
from launcher.training.loop import Training
from launcher.training.not_finite import LossNotFinite
from launcher.training.progress import RunProgress
from launcher.training.start import start_engine
from launcher.training.user_code_checks import check_code_is_found
from launcher.workers import default_workers
from launcher.world import print_on_main
from models.prepared import prepare_model
from recipes.errors import UserError
from recipes.lr_scaling import peak_lr
from recipes.schedule import StepSchedule
from recipes.schema import Recipe

_BELOW, _ABOVE = 1e-3, 30.0  # of the recipe's learning rate: where a test begins and ends if nothing else is asked for

_LEAST, _MOST = 1e-30, 1e30  # learning rates whose products with gradients may be numbers in float32


@dataclass(frozen=True)
class LrRange:
    """Which learning rates a test tries, and how it uses the machine.

    Attributes:
        start: the learning rate of the first step; None: a thousandth of the recipe's peak.
        end: the learning rate of the last step; None: 30 times the recipe's peak.
        steps: number of optimizer steps.
        micro_batch: as in `launcher.training.train.StartOptions`.
        workers: as there.
    """

    start: float | None = None
    end: float | None = None
    steps: int = 100
    micro_batch: int | None = None
    workers: int | None = None

    def bounds(self, recipe: Recipe) -> tuple[float, float]:
        """Return the learning rates of the first and the last step.

        Raises:
            UserError: there are fewer than two steps, or the learning rate does not rise or is out of range.
        """
        start = peak_lr(recipe) * _BELOW if self.start is None else self.start
        end = peak_lr(recipe) * _ABOVE if self.end is None else self.end
        if not 0 < start < end < math.inf:
            raise UserError(f"the learning rate has to rise from above 0, and {start:g} to {end:g} does not")
        if start < _LEAST or end > _MOST:
            raise UserError(
                f"learning rates from {start:g} to {end:g} are outside of what float32 computes with: stay within "
                f"{_LEAST:g} and {_MOST:g}"
            )
        if self.steps < 2:
            raise UserError(f"a test has at least two steps, and {self.steps} was asked for")
        return start, end


@dataclass(frozen=True)
class LrRangeTest:
    """What a test found, the same on every rank.

    Attributes:
        curve: learning rate and loss of every step.
        setting: how the batch was cut, and the engine.
        steps: that were planned.
        has_diverged: whether the test ended because the loss rose to four times its lowest value, or was not finite.
    """

    recipe: Recipe
    curve: LrCurve
    setting: str
    steps: int
    has_diverged: bool

    @property
    def was_stopped(self) -> bool:
        """Whether Ctrl-C ended the test."""
        return not self.has_diverged and len(self.curve.losses) < self.steps


def lr_range_test(recipe: Recipe, options: LrRange | None = None) -> LrRangeTest:
    """Train the first steps of a recipe in this process and its peers, with a learning rate that rises exponentially.

    Raises:
        UserError: the range is impossible, or training could not start; as in `launcher.training.train.train`.
    """
    options = options or LrRange()
    start, end = options.bounds(recipe)
    check_code_is_found(recipe)
    shards = open_shards(recipe)
    schedule = _RisingSchedule(recipe, len(shards.split("train")), start, end, options.steps)
    recipe = with_accelerate_config(recipe)
    accelerator = make_accelerator(recipe)
    model = prepare_model(recipe, len(shards.classes))
    choice = choose_engine_here(recipe, len(shards.classes), accelerator, options.micro_batch, model.has_batch_norm)
    engine, cut = start_engine(choice.recipe, model, list(shards.classes), accelerator, choice.cut, checkpoint=None)
    setting = f"{cut}, {engine.title}"
    print_on_main(f"{recipe.name}: learning rates from {start:.3g} to {end:.3g} in {options.steps} steps of {setting}")
    losses = _Losses(accelerator)
    workers = default_workers() if options.workers is None else options.workers
    engine.module.train()
    diverged = False
    try:
        Training(engine, model, schedule, cut, shards, losses, losses, workers, end=options.steps).train(0)
    except (_Diverged, LossNotFinite):
        diverged = True
    engine.close()
    accelerator.end_training()
    lrs = [schedule.lr(step) for step in range(len(losses.found))]
    return LrRangeTest(recipe, LrCurve(lrs, losses.found), setting, options.steps, diverged)


class _RisingSchedule(StepSchedule):
    """A recipe's schedule with another learning rate."""

    def __init__(self, recipe: Recipe, train_images: int, start: float, end: float, steps: int):
        super().__init__(recipe, train_images)
        self.start, self.end, self.steps = start, end, steps

    def lr(self, step: int) -> float:
        return rising_lr(self.start, self.end, step, self.steps)


class _Diverged(Exception):
    """The loss is far above its lowest value. All ranks raise this after the same step."""


class _Losses(EventLog):
    """Keeps the loss of every step on every rank, and ends the test where it diverges.

    It is both the log and the hooks (`launcher.training.evaluate_and_save.StepHooks`) of the training.
    """

    saves = False

    def __init__(self, accelerator: Accelerator):
        super().__init__(Metrics(Path(os.devnull)), accelerator, steps_per_epoch=1)
        self.found: list[float] = []

    def write(self, event: str, step: int, **values: Any) -> None:
        if event == "step":
            self.found.append(values["loss"])

    def evaluate_if_due(self, step: int, micro_batch: int, progress: RunProgress) -> None:
        if LrCurve([], self.found).has_diverged:
            raise _Diverged

    def save_if_due(self, step: int) -> None: ...

    def save(self, step: int) -> None: ...

    def finish(self) -> None: ...
