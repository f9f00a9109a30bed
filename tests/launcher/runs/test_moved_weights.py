"""A run goes on without the weights that it began with: their contents decide, not where they lie."""

import shutil

import pytest

from launcher.runs.metadata import RunMetadata
from launcher.runs.run_directory import RunDirectory
from launcher.runs.weights_digest import weights_digest
from launcher.training.train import StartOptions, train
from recipes.errors import UserError
from recipes.load import load
from tests.launcher.saved_runs import CLASSES, make_saved_run, tiny_model, write_weights


def begun_from(path, weights, sha256) -> RunDirectory:
    """A run directory whose training began with these weights."""
    run, recipe = RunDirectory(path), load("demo", [f"model.weights={weights}"])
    path.mkdir()
    dataset = {"name": "d", "digest": "d", "train_images": 1, "val_images": 0, "classes": ["a", "b"]}
    about = {"name": "demo", "recipe": "demo", "identity": recipe.identity(), "steps_per_epoch": 1, "total_steps": 2}
    run.write(
        recipe, RunMetadata(**about, dataset=dataset, model={"name": "m", "parameters": 1}, weights_sha256=sha256)
    )
    return run


@pytest.fixture
def weights(tmp_path):
    return write_weights(tmp_path / "w.safetensors", tiny_model(0), CLASSES)


def recipe_from(weights):
    return load("demo", [f"model.weights={weights}"])


def test_a_file_that_was_moved_is_the_same(weights, tmp_path):
    run = begun_from(tmp_path / "run", weights, weights_digest(str(weights)))
    moved = weights.rename(tmp_path / "moved.safetensors")
    run.check_recipe(recipe_from(moved))
    run.check_recipe(recipe_from(weights))  # gone, but the run no longer needs it


def test_other_weights_are_another_run(weights, tmp_path):
    run = begun_from(tmp_path / "run", weights, weights_digest(str(weights)))
    other = write_weights(tmp_path / "other.safetensors", tiny_model(1), CLASSES)
    for origin in (other, tmp_path / "none", "null", "timm"):
        with pytest.raises(UserError, match="holds a run"):
            run.check_recipe(recipe_from(origin))
    with pytest.raises(UserError, match=f"or give model.weights={weights} to resume it"):
        run.check_recipe(recipe_from(other))


def test_a_run_that_did_not_record_its_weights_is_resumed_by_their_old_path(weights, tmp_path):
    """As version 0.1.0 left it."""
    run = begun_from(tmp_path / "run", weights, None)
    moved = weights.rename(tmp_path / "moved.safetensors")
    run.check_recipe(recipe_from(weights))
    with pytest.raises(UserError, match=f"or give model.weights={weights} to resume it"):
        run.check_recipe(recipe_from(moved))


def test_a_copy_of_a_run_or_a_checkpoint_is_the_same(toy_shards, tmp_path):
    source = make_saved_run(tmp_path / "source", toy_shards(*CLASSES), {4: (0.5, None), 8: (0.5, None)})
    copied = shutil.copytree(source.path, tmp_path / "copied")
    step_4, step_8 = (f"checkpoints/step-0000000{step}" for step in (4, 8))
    digest = weights_digest(str(source.path))
    assert digest == weights_digest(str(copied)) == weights_digest(str(copied / step_8))
    assert digest != weights_digest(str(copied / step_4)) and None not in (digest, weights_digest(str(copied / step_4)))
    shutil.rmtree(copied / step_8)
    assert weights_digest(str(copied)) != digest
    for nothing in (None, "timm", str(tmp_path), "no\0path"):
        assert weights_digest(nothing) is None


def test_training_resumes_after_its_weights_moved_and_ends_as_if_they_had_not(small_recipe, tmp_path, digits):
    names = tuple(str(number) for number in range(10))
    weights = write_weights(tmp_path / "w.safetensors", tiny_model(0, classes=10), names)
    changes = ("schedule.epochs=1", "schedule.warmup_epochs=0", "run.save_every=8")
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert train(small_recipe(*changes, f"model.weights={weights}"), whole, StartOptions(workers=0))
    shutil.copytree(whole, run)
    newest = max((run / "checkpoints").iterdir())
    shutil.rmtree(newest)
    moved = weights.rename(tmp_path / "moved.safetensors")
    assert train(small_recipe(*changes, f"model.weights={moved}"), run, StartOptions(workers=0))
    losses = [[e["loss"] for e in RunDirectory(r).metrics.events() if e["event"] == "step"] for r in (whole, run)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert RunDirectory(run).metadata().weights_sha256 == RunDirectory(whole).metadata().weights_sha256 is not None
    assert RunDirectory(run).recipe().model.weights == str(moved)
