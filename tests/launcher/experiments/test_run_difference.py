"""`bigbatch diff` names the first step and the first part of it in which two runs differ."""

import json
from pathlib import Path

import pytest

from data.reading.shards import Split
from launcher.engines.data_parallel import DataParallel
from launcher.experiments.branch import branch
from launcher.experiments.run_difference import compare_trajectories
from launcher.runs.run_directory import RunDirectory
from models.stochastic_depth import StochasticDepth
from recipes.errors import UserError
from tests.launcher.experiments.short_runs import short_recipe, train_steps
from tests.launcher.process_group import Group, train_until
from tests.launcher.training.test_dropout_trajectory import dropping_vit

CHANGES = {  # each changes one layer of a step and those that follow from it
    "sample order": "data.shuffle=blocks",
    "pixels": "augment.crop_scale=[0.3,0.5]",
    "mixing": "mix.mode=pair",
    "masks": "model.drop_path=0.2",
    "learning rate": "optimizer.lr=1e-3",
    "weight decay": "optimizer.weight_decay=0.3",
    "EMA decay": "ema.decay=0.9",
    "forward (loss)": "loss.smoothing=0.2",
    "update (weights)": "optimizer.eps=1e-3",
}


@pytest.fixture(scope="module")
def reference(digits, tmp_path_factory) -> RunDirectory:
    run = tmp_path_factory.mktemp("runs") / "reference"
    return RunDirectory(train_steps(short_recipe(digits), run, 2))


@pytest.mark.slow
@pytest.mark.parametrize("layer", CHANGES)
def test_a_layer_that_alone_was_changed_is_named(digits, tmp_path, reference, layer):
    run = RunDirectory(train_steps(short_recipe(digits, CHANGES[layer]), tmp_path / "run", 2))
    found = compare_trajectories(reference, run)
    assert (found.first.step, found.first.layer) == (1, layer)
    assert [key for key, *_ in found.recipe] == [CHANGES[layer].partition("=")[0]] and not found.setting


@pytest.mark.slow
def test_decays_that_only_their_schedules_tell_apart_are_named_in_the_first_step_that_differs(digits, tmp_path):
    """The EMA's warm-up begins with the same decay for every `ema.decay`, and both schedules begin alike."""
    keys = ["ema.warmup=true", "optimizer.weight_decay_end=0.3"]
    run = RunDirectory(train_steps(short_recipe(digits, *keys), tmp_path / "run", 2))
    for changes, layer in (
        ([keys[0], "optimizer.weight_decay_end=0.2"], "weight decay"),
        (["ema.decay=0.2", *keys], "EMA decay"),
    ):
        other = RunDirectory(train_steps(short_recipe(digits, *changes), tmp_path / layer, 2))
        first = compare_trajectories(run, other).first
        assert (first.step, first.layer) == (2, layer)


def test_a_label_that_alone_was_changed_is_named(digits, tmp_path, reference, monkeypatch):
    labels = Split.labels.fget
    monkeypatch.setattr(Split, "labels", property(lambda split: (labels(split) + 1) % 10))
    found = compare_trajectories(reference, RunDirectory(train_steps(short_recipe(digits), tmp_path / "run", 1)))
    assert (found.first.step, found.first.layer) == (1, "labels") and not found.recipe


@pytest.mark.slow
def test_dropout_masks_that_alone_were_changed_are_named(digits, tmp_path, monkeypatch):
    recipe = short_recipe(digits, f"model.name={dropping_vit.__name__}", "model.drop_path=0", "model.layer_scale=null")
    one = RunDirectory(train_steps(recipe, tmp_path / "one", 1))
    keys = StochasticDepth._keys
    monkeypatch.setattr(
        StochasticDepth, "_keys", lambda self, purpose, step, *rest: keys(self, purpose, step + 1, *rest)
    )
    found = compare_trajectories(one, RunDirectory(train_steps(recipe, tmp_path / "other", 1)))
    assert (found.first.step, found.first.layer) == (1, "masks")


def test_a_gradient_that_alone_was_changed_is_named(digits, tmp_path, reference, monkeypatch):
    backward = DataParallel.backward
    monkeypatch.setattr(DataParallel, "backward", lambda engine, loss: backward(engine, loss * 1.001))
    found = compare_trajectories(reference, RunDirectory(train_steps(short_recipe(digits), tmp_path / "run", 1)))
    assert (found.first.step, found.first.layer) == (1, "backward (gradient norm)") and not found.recipe


def test_an_equal_run_is_equal_and_a_branch_differs_after_the_shared_steps(digits, tmp_path, reference, bigbatch):
    branch(reference, tmp_path / "branch", 1, ["optimizer.lr=1e-3"])
    run = RunDirectory(tmp_path / "branch")
    assert compare_trajectories(reference, run).first is None
    train_steps(run.recipe(), run.path, 3)
    found = compare_trajectories(reference, run)
    assert (found.first.step, found.first.layer, found.after, found.steps) == (2, "learning rate", 1, 2)
    code, shown, _ = bigbatch("diff", reference.path, run.path)
    assert code == 0 and "optimizer.lr" in shown and "first difference: step 2, learning rate: 0.00" in shown
    code, shown, _ = bigbatch("diff", reference.path, run.path, "--json")
    assert code == 0 and json.loads(shown)["first"]["layer"] == "learning rate"


def test_rounding_between_cuts_is_no_difference(digits, tmp_path, reference):
    Group(2, short_recipe(digits), tmp_path / "run", target=train_until, step=2, micro_batch=32).finish()
    found = compare_trajectories(reference, RunDirectory(tmp_path / "run"))
    assert found.rounding and found.first is None and [name for name, *_ in found.setting] == ["cut"]


def test_without_a_checkpoint_in_between_the_update_is_not_ruled_out(digits, tmp_path, reference, bigbatch):
    run = train_steps(short_recipe(digits, "optimizer.eps=1e-3", save_every=9), tmp_path / "run", 2)
    code, shown, _ = bigbatch("diff", reference.path, run)
    assert code == 0 and "first difference: step 2, forward (loss)" in shown
    assert "or the update of an earlier step: there is no checkpoint of step 1 in both runs" in shown


def test_runs_without_a_common_step_are_refused(reference, tmp_path):
    empty = RunDirectory(tmp_path / "empty")
    empty.path.mkdir()
    empty.write(reference.recipe(), reference.metadata())
    with pytest.raises(UserError, match="no step in common"):
        compare_trajectories(reference, empty)
    with pytest.raises(UserError, match="not a run directory"):
        compare_trajectories(reference, RunDirectory(Path("/nowhere")))
