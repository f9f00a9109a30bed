"""Every checkpoint of a run can be taken out, and what is taken is said: which weights, of which step, how accurate."""

import json
import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import nn

from launcher.evaluation.evaluate import EvaluateOptions, evaluate
from launcher.evaluation.export import accuracies_at, export
from launcher.evaluation.initial_weights import check_initial_weights, load_initial_weights
from launcher.evaluation.saved_weights import file_weights, run_weights
from launcher.runs.run_directory import RunDirectory, find_run
from models.build import build
from recipes.errors import UserError
from recipes.load import load
from tests.launcher import saved_runs
from tests.launcher.saved_runs import CLASSES, TINY, make_saved_run, tiny_model, write_weights

STEPS = {4: (0.5, 0.25), 8: (0.75, 0.125), 12: (0.5, 0.25)}


@pytest.fixture
def run(toy_shards, tmp_path) -> RunDirectory:
    """Raw and EMA weights at three steps; the raw ones of step 8 are the best."""
    return make_saved_run(tmp_path / "run", toy_shards(*CLASSES), STEPS)


def assert_are(tensors: dict, seed: int) -> None:
    """These are the weights of `tiny_model(seed)`; EMA weights have the seed 1000 + step."""
    expected = tiny_model(seed).state_dict()
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    "choice, seed, title",
    [
        ({"ema": True}, 1012, "EMA weights of step 12"),
        ({"ema": False}, 12, "raw weights of step 12"),
        ({"ema": True, "step": 4}, 1004, "EMA weights of step 4"),
        ({"ema": False, "step": 8}, 8, "raw weights of step 8"),
        ({"ema": True, "best": True}, 8, "raw weights of step 8"),
        ({"ema": False, "best": True}, 8, "raw weights of step 8"),
    ],
)
def test_the_weights_that_were_asked_for_are_taken_and_named(run, choice, seed, title):
    weights = run_weights(run, **choice)
    assert_are(weights.tensors, seed)
    assert weights.title == f"{title} of {run.path}" and weights.classes == list(CLASSES)


def test_the_best_weights_are_the_ema_where_they_were_best(toy_shards, tmp_path):
    run = make_saved_run(tmp_path / "run", toy_shards(*CLASSES), {4: (0.5, 0.9), 8: (0.75, 0.125)})
    assert_are(run_weights(run, ema=True, best=True).tensors, 1004)
    assert_are(run_weights(run, ema=False, best=True).tensors, 4)


def test_a_run_without_ema_gives_its_raw_weights_and_says_so(toy_shards, tmp_path):
    run = make_saved_run(tmp_path / "run", toy_shards(*CLASSES), {4: (0.5, None)})
    assert run_weights(run, ema=True).title.startswith("raw weights of step 4")


def test_a_step_that_is_not_there_is_refused_with_those_that_are(run):
    with pytest.raises(UserError, match=r"no checkpoint of step 5: .*\(4, 8, 12\)"):
        run_weights(run, ema=True, step=5)


def test_a_checkpoint_is_named_by_its_folder_from_anywhere(run, monkeypatch):
    folder = run.path / "checkpoints" / "step-00000008"

    def found(path):
        directory, step = find_run(path)
        return directory.path.resolve(), step

    assert found(folder) == (run.path.resolve(), 8)
    monkeypatch.chdir(run.path)
    assert found(folder.relative_to(run.path)) == (run.path.resolve(), 8)
    monkeypatch.chdir(run.checkpoints)
    assert found(folder.relative_to(run.checkpoints)) == (run.path.resolve(), 8)
    with pytest.raises(UserError, match="--step"):
        find_run(folder, 4)


def test_the_command_line_takes_every_checkpoint(run, bigbatch, tmp_path, toy_shards):
    """`run.keep_every` keeps milestones for good, so that they can be used."""
    milestone, file = run.path / "checkpoints" / "step-00000004", tmp_path / "w.safetensors"
    for arguments in ((milestone, file), (run.path, file, "--step", 4)):
        code, output, _ = bigbatch("export", *arguments)
        assert code == 0 and "EMA weights of step 4 of" in output
        assert_are(load_file(file), 1004)
    image = next((toy_shards.folder / ("images " + " ".join(CLASSES))).rglob("*.png"))
    code, output, errors = bigbatch("predict", milestone, image, "--raw")
    assert code == 0 and "raw weights of step 4" in errors and len(output.splitlines()) == 1
    code, output, _ = bigbatch("evaluate", run.path, "--step", 8, "--workers", 0)
    assert code == 0 and "raw weights of step 8" in output and "EMA weights of step 8" in output


def test_an_export_prints_which_weights_it_wrote_and_how_accurate_they_are(run, bigbatch, tmp_path):
    file = tmp_path / "w.safetensors"
    code, output, _ = bigbatch("export", run.path, file, "--best")
    assert code == 0 and "raw weights of step 8" in output
    assert "raw top-1 75.00%" in output and "EMA top-1 12.50%" in output
    assert_are(load_file(file), 8)
    assert accuracies_at(run, 8) == {"EMA": 0.125, "raw": 0.75} and accuracies_at(run, 5) == {}


def test_a_file_says_which_weights_it_holds(run, tmp_path):
    export(run, tmp_path / "w.safetensors", ema=False, step=4)
    assert file_weights(tmp_path / "w.safetensors").title == f"raw weights of step 4 of {tmp_path / 'w.safetensors'}"
    (result,) = evaluate(tmp_path / "w.safetensors", options=EvaluateOptions(workers=0))
    assert "raw weights of step 4" in result.line()


@pytest.mark.parametrize("classes", ["[]", "[1]", "{}", "null", "["])
def test_damaged_class_names_are_refused(run, tmp_path, bigbatch, classes):
    file = write_weights(tmp_path / "w.safetensors", tiny_model(0))
    with safe_open(file, framework="pt") as opened:
        metadata = opened.metadata()
    save_file(tiny_model(0).state_dict(), file, metadata | {"classes": classes})
    image = next(Path(run.recipe().data.path).parent.rglob("*.png"))
    code, _, errors = bigbatch("predict", file, image)
    assert code == 2 and "the class names in the metadata" in errors


@pytest.mark.parametrize("kind, step", [("EMA", "9" * 6000), ("EMA", "²"), ("\x1b[31m", "4"), ("", "")])
def test_damaged_metadata_about_the_training_count_as_missing(tmp_path, kind, step):
    save_file(tiny_model(0).state_dict(), tmp_path / "w.safetensors", {"weights": kind, "step": step})
    assert file_weights(tmp_path / "w.safetensors").title == f"weights of {tmp_path / 'w.safetensors'}"


def test_a_damaged_file_is_not_taken_for_one_without_a_recipe(run, tmp_path, bigbatch):
    file = write_weights(tmp_path / "w.safetensors", tiny_model(0))
    file.write_bytes(file.read_bytes()[:-1])
    image = next(Path(run.recipe().data.path).parent.rglob("*.png"))
    for command in (("predict", file, image), ("evaluate", file), ("features", file, image.parent, tmp_path / "f.npz")):
        code, _, errors = bigbatch(*command)
        assert code == 2 and "it is damaged" in errors and "--recipe" not in errors


@pytest.mark.parametrize("choice", [(), ("--raw",)])
def test_weights_of_a_run_that_are_not_finite_are_refused(toy_shards, tmp_path, monkeypatch, bigbatch, choice):
    def diverged(seed: int, classes: int) -> nn.Module:
        model = tiny_model(seed, classes)
        nn.init.constant_(model.get_classifier().bias, torch.nan)
        return model

    monkeypatch.setattr(saved_runs, "tiny_model", diverged)
    run = make_saved_run(tmp_path / "run", toy_shards(*CLASSES), {4: (0.5, 0.25)})
    image = next(Path(run.recipe().data.path).parent.rglob("*.png"))
    for command in (("predict", run.path, image, *choice), ("evaluate", run.path, "--workers", 0, *choice)):
        code, output, errors = bigbatch(*command)
        assert code == 2 and "head.fc.bias in" in errors and "is NaN or infinite" in errors and not output


def test_training_starts_from_any_checkpoint(run):
    milestone = run.path / "checkpoints" / "step-00000004"
    recipe = load("demo", [*TINY, f"model.weights={milestone}"])
    model = build(recipe, len(CLASSES))
    notes = load_initial_weights(model, recipe, list(CLASSES))
    assert_are(model.state_dict(), 1004)
    assert "EMA weights of step 4" in notes[0]


def test_layers_that_are_frozen_at_random_values_are_said():
    frozen = load("demo", ["model.train=head"])
    assert "random values" in check_initial_weights(frozen, list(CLASSES))[0]
    assert check_initial_weights(load("demo", []), list(CLASSES)) == []


def test_a_damaged_newest_checkpoint_is_passed_over_and_a_damaged_chosen_one_is_refused(run):
    part = next((run.checkpoints / "step-00000012").glob("*.safetensors"))
    part.write_bytes(part.read_bytes()[:-1])
    assert run_weights(run, ema=True).step == 8
    with pytest.raises(UserError, match="step-00000012 is damaged"):
        run_weights(run, ema=True, step=12)


@pytest.mark.parametrize("umask, mode", [(0o022, 0o644), (0o077, 0o600), (0o002, 0o664)])
def test_an_export_has_the_mode_that_the_umask_gives(run, tmp_path, umask, mode):
    before = os.umask(umask)
    try:
        export(run, tmp_path / "w.safetensors")
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "w.safetensors").stat().st_mode) == mode


def test_an_export_is_read_by_version_0_1_0(run, tmp_path):
    """It knows the keys `recipe` and `classes`, and ignores others."""
    export(run, tmp_path / "w.safetensors")
    with safe_open(tmp_path / "w.safetensors", framework="pt") as file:
        metadata = file.metadata()
    assert json.loads(metadata["classes"]) == list(CLASSES) and json.loads(metadata["recipe"])["name"] == "demo"
