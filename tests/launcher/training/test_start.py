"""What a start resumes from: the run's own checkpoint, and never that of another recipe or of other shards."""

import json
import os
import shutil
import sys
from dataclasses import replace

import pytest

from data.reading.shards import ShardSet
from data.writing.sharding import shard
from launcher.checkpoints.checkpoint import latest_valid
from launcher.runs.run_directory import RunDirectory
from launcher.training.start import _check_belongs_to
from launcher.training.train import StartOptions, train
from recipes.errors import UserError
from recipes.schema import _digest
from tests.launcher.process_group import Group, train_until

OPTIONS = StartOptions(workers=0)


@pytest.fixture(scope="module")
def stopped(digits, tmp_path_factory):
    """A run of the small recipe, stopped and saved after two steps."""
    from recipes.load import load
    from tests.launcher.conftest import SMALL

    run = tmp_path_factory.mktemp("stopped") / "run"
    Group(1, load("demo", [*SMALL, f"data.path={digits}"]), run, train_until, step=2).finish()
    return run


@pytest.fixture
def run(stopped, tmp_path):
    """A copy of the stopped run without the files that say what it is a run of."""
    copy = shutil.copytree(stopped, tmp_path / "run")
    (copy / "recipe.yaml").unlink()
    (copy / "run.json").unlink()
    return copy


def test_without_recipe_yaml_another_recipe_does_not_continue_the_run(run, small_recipe):
    events = (run / "metrics.jsonl").read_text()
    with pytest.raises(UserError, match="step-00000002 was written by a run with another recipe") as caught:
        train(small_recipe("optimizer.lr=0.1"), run, OPTIONS)
    assert "\n" not in str(caught.value)
    assert (run / "metrics.jsonl").read_text() == events and not (run / "recipe.yaml").exists()


def test_without_run_json_the_run_does_not_continue_on_other_shards(run, small_recipe, tmp_path):
    other = tmp_path / "other"
    shard("digits", other, val_fraction=0.3, progress=False)
    with pytest.raises(UserError, match="step-00000002 was written by a run with another data set"):
        train(small_recipe(f"data.path={other}"), run, OPTIONS)


def test_several_ranks_refuse_with_one_sentence(run, small_recipe):
    group = Group(2, small_recipe("optimizer.lr=0.1"), run, _train_as_a_program)
    assert group.wait() == 2
    printed = group.log.read_text()
    assert printed.count("was written by a run with another recipe") == 1 and "Traceback" not in printed


def _train_as_a_program(recipe, run):
    from launcher.cli.entry import run_command

    sys.argv = ["train"]
    run_command(lambda: None if train(recipe, run, OPTIONS) else None)


def test_the_same_recipe_continues_the_run_whatever_the_engine(run, small_recipe):
    Group(1, small_recipe("engine.zero=1"), run, train_until, step=3).finish()
    assert "resumes at step 2" in run.with_name("run.log").read_text()


def _lose_the_checkpoints(run):
    shutil.rmtree(run / "checkpoints")


def _damage_all_checkpoints(run):
    for part in run.glob("checkpoints/*/part-*"):
        os.truncate(part, 1000)


def _write_a_newer_format(run):
    manifest = run / "checkpoints" / "step-00000002" / "checkpoint.json"
    manifest.write_text(json.dumps(json.loads(manifest.read_text()) | {"format": 99}))


@pytest.mark.parametrize(
    "lose, sentence",
    [
        (_damage_all_checkpoints, "the only checkpoint in .* is damaged .*restore one .*another --run-dir"),
        (_lose_the_checkpoints, "the checkpoints in .* are gone, .*restore them .*another --run-dir"),
        (lambda run: shutil.rmtree(run / "checkpoints" / "step-00000002"), "the checkpoints in .* are gone"),
        (_write_a_newer_format, "was written by a newer version of bigbatch"),
    ],
    ids=["damaged", "folder removed", "folder emptied", "newer format"],
)
def test_a_run_whose_checkpoints_cannot_be_used_is_not_begun_anew(stopped, small_recipe, tmp_path, lose, sentence):
    run = shutil.copytree(stopped, tmp_path / "run")
    events = (run / "metrics.jsonl").read_text()
    lose(run)
    with pytest.raises(UserError, match=sentence) as caught:
        train(small_recipe(), run, OPTIONS)
    assert "\n" not in str(caught.value)
    assert (run / "metrics.jsonl").read_text() == events


def test_a_run_that_was_never_saved_starts_over_and_says_so(stopped, small_recipe, tmp_path):
    """As after a kill before the first save, or in the middle of it: there is at most the event of one save."""
    run = shutil.copytree(stopped, tmp_path / "run")
    lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if '"stop"' not in line]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    (run / "checkpoints" / "step-00000002").rename(run / "checkpoints" / ".step-00000002-killed")
    Group(1, small_recipe(), run, train_until, step=1).finish()
    assert "were never saved: training starts over at step 0" in run.with_name("run.log").read_text()
    assert [event["event"] for event in RunDirectory(run).metrics.events()] == [
        "start",
        "start",
        "step",
        "checkpoint",
        "stop",
    ]


def test_a_checkpoint_of_0_1_0_is_resumed_after_its_weights_file_was_moved(stopped, small_recipe, digits):
    """That version hashed the path into the identity; the run's recipe is compared without it."""
    recipe, moved = small_recipe("model.weights=old.safetensors"), small_recipe("model.weights=new.safetensors")
    old = _digest(recipe._hashed_by_0_1_0())
    assert moved.identity() == recipe.identity() != old and not moved.has_identity(old)
    shards = ShardSet.open(digits)
    checkpoint = replace(latest_valid(stopped / "checkpoints"), metadata={"identity": old, "dataset": shards.digest})
    _check_belongs_to(checkpoint, RunDirectory(stopped), moved, shards)
    with pytest.raises(UserError, match="another recipe"):
        _check_belongs_to(checkpoint, RunDirectory(stopped.with_name("lost")), moved, shards)
    with pytest.raises(UserError, match="another recipe"):
        _check_belongs_to(checkpoint, RunDirectory(stopped), small_recipe(), shards)
