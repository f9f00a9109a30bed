"""`bigbatch lr` takes the recipe's own first steps, gives the same losses at any cut, and keeps nothing."""

import json
from pathlib import Path

import pytest

from launcher.experiments.lr_range_test import LrRange, lr_range_test
from launcher.runs.run_directory import RunDirectory
from launcher.training.loop import Training
from recipes.errors import UserError
from recipes.lr_scaling import peak_lr
from tests.launcher.conftest import SMALL
from tests.launcher.experiments.short_runs import short_recipe, train_steps
from tests.launcher.process_group import Group

FEW = LrRange(1e-5, 1e-2, steps=20, micro_batch=64, workers=0)


def losses_of_group(recipe, folder: Path, **options) -> None:
    """Test in one process of several, which writes its losses to a file."""
    from launcher.world import this_process

    test = lr_range_test(recipe, LrRange(1e-5, 1e-2, steps=20, workers=0, **options))
    (folder / f"{this_process().rank}.json").write_text(json.dumps(test.curve.losses))


@pytest.fixture(scope="module")
def losses(digits) -> list[float]:
    """The losses of 20 steps in one process, each with one micro-batch."""
    return lr_range_test(short_recipe(digits), FEW).curve.losses


def test_the_first_step_is_that_of_the_run(digits, losses, tmp_path):
    run = train_steps(short_recipe(digits), tmp_path / "run", 1)
    [first] = [event for event in RunDirectory(run).metrics.events() if event["event"] == "step"]
    assert losses[0] == pytest.approx(first["loss"], rel=1e-6)  # the run has another micro-batch


@pytest.mark.slow
def test_two_processes_with_small_micro_batches_give_the_losses_of_one(digits, losses, tmp_path):
    """Within float32 rounding, which training amplifies from step to step; every rank has the same bits."""
    Group(2, short_recipe(digits), tmp_path, target=losses_of_group, micro_batch=16).finish()
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    assert first == second == pytest.approx(losses, rel=1e-3)


def test_it_shows_the_suggestion_and_leaves_nothing_but_the_page(digits, tmp_path, bigbatch, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = ["lr", "demo", *SMALL, "--data", digits, "--steps", 40, "--workers", 0, "--out", "lr.html"]
    learns = ["model.layer_scale=null", "mix.mixup=0", "mix.cutmix=0", "--from", 1e-4, "--to", 3e-2]
    code, shown, error = bigbatch(*command, *learns, "optimizer.lr_at_batch=256")
    assert code == 0, error
    assert "suggested peak" in shown and "to take it, add optimizer.lr=" in shown
    assert "the recipe's peak is" in shown and "falls fastest" in shown
    assert [path.name for path in tmp_path.iterdir()] == ["lr.html"]
    page = (tmp_path / "lr.html").read_text()
    assert page.startswith("<!doctype html>") and "Suggested peak" in page and "<svg" in page


def test_a_loss_that_diverges_ends_the_test(digits, bigbatch):
    command = ["lr", "demo", *SMALL, "optimizer.name=sgd", "--data", digits, "--to", "1e6", "--steps", 30]
    code, shown, error = bigbatch(*command, "--workers", 0)
    assert code == 0 and "the loss diverged after step" in shown, error


def test_ctrl_c_shows_what_is_known_so_far(digits, bigbatch, monkeypatch):
    do_step = Training._step
    monkeypatch.setattr(
        Training,
        "_step",
        lambda self, number, batches, progress, _: do_step(self, number, batches, progress, number == 2),
    )
    code, shown, _ = bigbatch("lr", "demo", *SMALL, "--data", digits, "--workers", 0)
    assert code == 130 and "stopped after 3 of 100 steps" in shown and "no suggestion" in shown


def test_an_impossible_range_is_refused(digits):
    recipe = short_recipe(digits)
    for wrong in (LrRange(1e-2, 1e-3), LrRange(0.0, 1e-3), LrRange(1e-3, float("inf")), LrRange(1e-3, float("nan"))):
        with pytest.raises(UserError, match="has to rise"):
            wrong.bounds(recipe)
    for wrong in (LrRange(1e-320, 1e-3), LrRange(1e-3, 1e308)):
        with pytest.raises(UserError, match="outside of what float32 computes with"):
            wrong.bounds(recipe)
    assert LrRange().bounds(recipe) == (peak_lr(recipe) * 1e-3, peak_lr(recipe) * 30)
