"""A checkpoint belongs to the run, not to the engine or the number of processes that wrote it."""

import shutil
from pathlib import Path

import pytest

from recipes.load import load
from recipes.schema import Recipe
from tests.launcher.comparison import assert_same_curve, assert_same_state
from tests.launcher.conftest import SMALL
from tests.launcher.process_group import Group, train_until

pytestmark = pytest.mark.slow

SAVED, FINISHED = 3, 6
WORLDS = (1, 2, 3)
ENGINES = {"ddp": ("engine.zero=0",), **{f"zero {stage}": (f"engine.zero={stage}",) for stage in (1, 2, 3)}}


@pytest.fixture(scope="module")
def recipe(digits):
    """Make the small recipe with 24 images a step and an engine."""
    small = [
        *SMALL,
        "batch.global=24",
        "batch.slices=3",
        "optimizer.layer_decay=0.9",
        f"data.path={digits}",
        "schedule.warmup_epochs=0",
    ]

    def of(engine: str, *changes: str) -> Recipe:
        return load("demo", [*small, *ENGINES[engine], *changes])

    return of


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory) -> Path:
    """Plain data parallelism in one process, without a stop."""
    return until(FINISHED, 1, recipe("ddp"), tmp_path_factory.mktemp("undisturbed") / "run")


@pytest.fixture(scope="module")
def saved_by(recipe, tmp_path_factory):
    """The run of an engine on so many processes, saved after three steps; each is made once."""
    made = {}

    def run(engine: str, world_size: int) -> Path:
        if (engine, world_size) not in made:
            folder = tmp_path_factory.mktemp("saved") / "run"
            made[engine, world_size] = until(SAVED, world_size, recipe(engine), folder)
        return made[engine, world_size]

    return run


def until(step: int, world_size: int, recipe: Recipe, run: Path) -> Path:
    """Train, by accumulation in one process and two, with padding in two."""
    Group(world_size, recipe, run, train_until, step=step, micro_batch=8).finish()
    return run


@pytest.mark.parametrize("world_size", WORLDS)
@pytest.mark.parametrize("writer", ENGINES)
def test_every_engine_saves_the_same_state(saved_by, writer, world_size):
    """So whoever continues from one of them continues from any."""
    assert_same_curve(saved_by(writer, world_size), saved_by("ddp", 1), SAVED)
    assert_same_state(saved_by(writer, world_size), saved_by("ddp", 1))


@pytest.mark.parametrize("reader", ENGINES)
@pytest.mark.parametrize("writer", ENGINES)
def test_what_one_engine_saved_any_other_continues(saved_by, recipe, undisturbed, tmp_path, writer, reader):
    """The test that DeepSpeed's own checkpoints do not pass; with layer-wise decay, so with many parameter groups.

    Every writer meets every reader, and each of them every number of processes, which always changes.
    """
    order = list(ENGINES)
    turn = (order.index(writer) + order.index(reader)) % len(WORLDS)
    shutil.copytree(saved_by(writer, WORLDS[turn]), tmp_path / "run")
    run = until(FINISHED, WORLDS[(turn + 1) % len(WORLDS)], recipe(reader), tmp_path / "run")
    assert_same_curve(run, undisturbed, FINISHED)
    assert_same_state(run, undisturbed)
