"""A branch shares its parent's steps and continues as a run whose changes were scheduled from that step."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from launcher.checkpoints.checkpoint import latest_valid
from launcher.experiments.branch import branch
from launcher.runs.history import History
from launcher.runs.report import write_report
from launcher.runs.run_directory import RunDirectory
from launcher.runs.runs_table import print_runs
from launcher.training.train import StartOptions, train
from recipes.errors import UserError
from recipes.schedule import StepSchedule
from tests.command_line import run_command
from tests.launcher.comparison import losses, train_until

OPTIONS = StartOptions(micro_batch=32, workers=0)
CHANGES = ["optimizer.lr=2e-3", "optimizer.weight_decay=0.2", "mix.mixup=0", "schedule.epochs=2"]


@pytest.fixture(scope="module")
def parent(digits, tmp_path_factory) -> Path:
    """A run of 22 steps with checkpoints of steps 8, 16 and 22."""
    from recipes.load import load
    from tests.launcher.conftest import SMALL

    run = tmp_path_factory.mktemp("runs") / "parent"
    recipe = load("demo", [*SMALL, f"data.path={digits}", "schedule.epochs=1", "schedule.warmup_epochs=0"])
    recipe = recipe.variant(run={"save_every": 8, "keep": 9})
    assert train(recipe, run, OPTIONS)
    return run


def made(parent: Path, new: Path, step: int | None = None, *changes: str):
    return branch(RunDirectory(parent), new, step, list(changes))


def weights(run: Path) -> dict[str, torch.Tensor]:
    reader = latest_valid(run / "checkpoints").reader()
    return {f"{kind}/{name}": value for kind in reader.kinds for name, value in reader.tensors(kind).items()}


@pytest.mark.slow
def test_it_equals_a_run_that_had_the_changes_scheduled_from_that_step(parent, tmp_path, monkeypatch):
    """Every bit of losses and state; the reference switches schedule, optimizer and mixing at step 8 by itself."""
    recipe = made(parent, tmp_path / "branch", 8, *CHANGES)
    assert train(recipe, tmp_path / "branch", OPTIONS)

    before = RunDirectory(parent).recipe()
    reference = recipe.model_copy(update={"branch": None})
    assert not train_until(8, monkeypatch, before, tmp_path / "reference", OPTIONS)
    run = RunDirectory(tmp_path / "reference")
    saved = run.checkpoints / "step-00000008" / "checkpoint.json"
    manifest = json.loads(saved.read_text())
    manifest["about"]["identity"] = reference.identity()
    saved.write_text(json.dumps(manifest))
    run.recipe_file.unlink()
    assert train(reference, run.path, OPTIONS)

    assert losses(tmp_path / "branch") == losses(run.path)
    assert (
        losses(tmp_path / "branch")[:8] == losses(parent)[:8]
        and losses(tmp_path / "branch")[9:25] != losses(parent)[9:25]
    )
    ours, theirs = weights(tmp_path / "branch"), weights(run.path)
    assert ours.keys() == theirs.keys() and all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_many_branches_cost_one_trunk(parent, tmp_path):
    """Checkpoints are hard links, and the parent keeps every byte whatever a branch does with its own."""
    before = {path: path.read_bytes() for path in parent.rglob("*.json*")}
    trunk = next((parent / "checkpoints/step-00000016").glob("*.safetensors"))
    for number in range(5):
        made(parent, tmp_path / f"cooldown-{number}", 16, f"optimizer.lr={1e-4 * (number + 1)}", "schedule.epochs=2")
    assert trunk.stat().st_nlink >= 6
    shutil.rmtree(tmp_path / "cooldown-0")
    assert {path: path.read_bytes() for path in parent.rglob("*.json*")} == before
    assert len({RunDirectory(tmp_path / f"cooldown-{n}").recipe().identity() for n in range(1, 5)}) == 4


def test_its_identity_follows_from_parent_step_and_changes(parent, tmp_path):
    first = made(parent, tmp_path / "a", 8, *CHANGES)
    assert first.identity() == made(parent, tmp_path / "b", 8, *CHANGES).identity()
    assert first.identity() != made(parent, tmp_path / "c", 16, *CHANGES).identity()
    assert first.identity() != first.model_copy(update={"branch": None}).identity()
    moved = first.branch.model_copy(update={"run": "/elsewhere"})
    assert first.identity() == first.model_copy(update={"branch": moved}).identity()
    again = made(tmp_path / "a", tmp_path / "d", 8, "optimizer.lr=1e-3")
    assert again.branch.identity == first.identity()


@pytest.mark.slow
def test_a_finished_run_is_extended_and_its_branches_are_shown_as_a_tree(parent, tmp_path, capsys):
    shutil.copytree(parent, tmp_path / "parent")
    recipe = made(tmp_path / "parent", tmp_path / "longer", None, "schedule.epochs=2")
    assert recipe.branch.step == 22 and recipe.name == "longer"
    assert train(recipe, tmp_path / "longer", OPTIONS)
    made(tmp_path / "longer", tmp_path / "other", None, "schedule.epochs=3")
    assert len(losses(tmp_path / "longer")) == 44
    history = History(tmp_path / "longer")
    assert history.finished and not history.restarts
    capsys.readouterr()
    print_runs(tmp_path)
    rows = [line.split("  ")[0].rstrip() for line in capsys.readouterr().out.splitlines()[1:]]
    assert rows[0] == "parent" and rows[1].startswith("└ longer (from step 22)")
    page = write_report([tmp_path / "parent", tmp_path / "longer"], tmp_path / "report.html").read_text()
    assert "A branch of" in page and "share steps 1 to 22" in page


def test_a_branch_that_took_its_parents_place_is_still_shown(parent, tmp_path, capsys):
    shutil.copytree(parent, tmp_path / "run")
    made(tmp_path / "run", tmp_path / "branch", 8, "optimizer.lr=1e-4")
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "branch").rename(tmp_path / "run")
    capsys.readouterr()
    print_runs(tmp_path)
    assert capsys.readouterr().out.splitlines()[1].startswith("run ")


@pytest.mark.parametrize(
    "step, changes, message",
    [
        (9, [], "no checkpoint of step 9: use --at-step with one of 8, 16, 22"),
        (None, [], "ends at step 22, and it begins at step 22: add e.g. schedule.epochs=2"),
        (8, ["model.name=convnext_tiny"], "model.name cannot change inside a run"),
        (8, ["model.weights=timm"], "model.weights cannot change"),
        (8, ["optimizer.name=sgd"], "optimizer.name cannot change"),
        (8, ["code.optimizer=mine"], "code.optimizer cannot change"),
        (8, ["ema.decay=null"], "ema.decay cannot be switched on or off"),
        (8, ["optimizer.lrr=1"], "unknown key"),
        (8, ["data.path=nowhere"], "there is no folder nowhere"),
    ],
)
def test_what_cannot_change_inside_a_run_is_one_sentence(parent, tmp_path, step, changes, message):
    with pytest.raises(UserError, match=message):
        made(parent, tmp_path / "new", step, *changes)
    assert not list(tmp_path.iterdir())


def test_an_existing_run_is_not_replaced(parent, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "file").touch()
    with pytest.raises(UserError, match="exists already"):
        made(parent, tmp_path / "new", 8)
    made(parent, tmp_path / "fresh", 8)
    with pytest.raises(UserError, match="exists already"):
        made(parent, tmp_path / "fresh", 8)


def test_a_branch_without_its_checkpoint_never_starts_at_step_0(parent, tmp_path):
    recipe = made(parent, tmp_path / "new", 8, *CHANGES)
    shutil.rmtree(tmp_path / "new" / "checkpoints")
    with pytest.raises(UserError, match="make the branch again with `bigbatch branch .*parent NEW --at-step 8`"):
        train(recipe, tmp_path / "new", OPTIONS)
    with pytest.raises(UserError, match="make the branch again"):
        train(recipe, tmp_path / "elsewhere", OPTIONS)


def test_the_command_says_where_it_begins_and_how_to_train_it(parent, tmp_path, monkeypatch, capsys):
    new = tmp_path / "it's new"
    code = run_command(monkeypatch, "branch", parent, new, "--at-step", 8, "batch.global=32")
    output = capsys.readouterr().out
    assert not code and "shares steps 1 to 8 with" in output
    assert "step 8 was epoch 0.36 of the parent and is epoch 0.18 of the branch" in output
    assert "note: batch 64 → 32: the learning rate stays" in output
    assert f"bigbatch train '{tmp_path}/it'\"'\"'s new/recipe.yaml' --run-dir" in output


def test_the_schedule_of_the_branch_is_its_own(parent, tmp_path):
    recipe = made(parent, tmp_path / "new", 8, *CHANGES)
    images = RunDirectory(tmp_path / "new").metadata().dataset.train_images
    assert RunDirectory(tmp_path / "new").metadata().total_steps == StepSchedule(recipe, images).total_steps == 44
