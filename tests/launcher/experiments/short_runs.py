"""Runs of a few steps, with a checkpoint after every step or after some."""

from pathlib import Path

import pytest

from launcher.training.train import StartOptions
from recipes.load import load
from recipes.schema import Recipe
from tests.launcher.comparison import train_until
from tests.launcher.conftest import SMALL

OPTIONS = StartOptions(micro_batch=32, workers=0)


def short_recipe(digits: Path, *changes: str, save_every: int = 1) -> Recipe:
    """The small recipe, whose first steps take a moment."""
    recipe = load("demo", [*SMALL, f"data.path={digits}", "schedule.warmup_epochs=0", *changes])
    return recipe.variant(run={"save_every": save_every, "keep": 9})


def train_steps(recipe: Recipe, run: Path, steps: int, options: StartOptions = OPTIONS) -> Path:
    """Train so many steps, save, and return the run directory."""
    with pytest.MonkeyPatch.context() as patch:
        assert not train_until(steps, patch, recipe, run, options)
    return run
