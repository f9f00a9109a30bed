"""SIGKILL at any moment, of one process or of all: the same command goes on, and ends with the same bits."""

import random
import time
from pathlib import Path

import pytest
import torch

from launcher.checkpoints import checkpoint
from recipes.load import load
from tests.launcher.comparison import losses
from tests.launcher.conftest import SMALL
from tests.launcher.process_group import Group

pytestmark = pytest.mark.slow

KILLS = 15  # of each engine
ENGINES = {  # changes of the recipe, and the micro-batch: 118 steps of 3 passes; 58 of 2 where a pass takes longer
    "ddp": (["engine.zero=0", "batch.global=24", "batch.slices=3"], 4),
    "zero 3": (["engine.zero=3", "batch.global=48", "batch.slices=6"], 12),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_killed_at_random_moments_no_checkpoint_is_lost_and_the_end_is_the_same(digits, tmp_path, engine):
    """Moments: any time after the start, inside a save, after some steps; all processes or one of the two."""
    small = [*SMALL, "schedule.epochs=2", "schedule.warmup_epochs=0", "run.save_every=4"]
    changes, micro_batch = ENGINES[engine]
    recipe = load("demo", [*small, *changes, f"data.path={digits}", "run.evaluate_every=1"])
    undisturbed, run = tmp_path / "undisturbed", tmp_path / "killed"
    Group(2, recipe, undisturbed, micro_batch=micro_batch).finish()
    seed = time.time_ns()
    chance, reached, finished = random.Random(seed), 0, False
    for kill in range(KILLS):
        group = Group(2, recipe, run, micro_batch=micro_batch)
        moment = chance.choice([_at_any_time, _inside_a_save, _after_some_steps])
        finished = not moment(chance, group, run)
        group.kill(range(2) if chance.random() < 0.5 else range(1, 2))
        exit_code = group.wait()
        newest = checkpoint.latest_valid(run / "checkpoints")
        assert (newest.step if newest else 0) >= reached, f"kill {kill} with seed {seed} lost a checkpoint"
        reached = newest.step if newest else 0
        if finished or exit_code == 0:
            break
    Group(2, recipe, run, micro_batch=micro_batch).finish()
    assert losses(run) == losses(undisturbed), f"seed {seed}"
    ours, expected = (checkpoint.latest_valid(folder / "checkpoints").reader() for folder in (run, undisturbed))
    assert ours.kinds == expected.kinds and ours.scalars == expected.scalars
    for kind in expected.kinds:
        for name, value in expected.tensors(kind).items():
            assert torch.equal(ours.tensor(kind, name), value), f"{kind}/{name}, seed {seed}"


def _at_any_time(chance: random.Random, group: Group, run: Path) -> bool:
    time.sleep(chance.uniform(0, 3))
    return group.is_running()


def _inside_a_save(chance: random.Random, group: Group, run: Path) -> bool:
    _wait(group, lambda: list((run / "checkpoints").glob(".step-*")))
    time.sleep(chance.uniform(0, 0.01))
    return group.is_running()


def _after_some_steps(chance: random.Random, group: Group, run: Path) -> bool:
    before = len(losses(run))
    _wait(group, lambda: len(losses(run)) > before)
    time.sleep(chance.uniform(0, 0.5))
    return group.is_running()


def _wait(group: Group, condition) -> None:
    deadline = time.monotonic() + 120
    while not condition() and group.is_running():
        assert time.monotonic() < deadline, group.log.read_text()
        time.sleep(0.002)
