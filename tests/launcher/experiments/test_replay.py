"""A replay equals the record bit for bit, and names the first step and the part of it that does not."""

import json
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from data.batches import MicroBatches
from data.on_device import DevicePreprocessor
from launcher.engines.data_parallel import DataParallel
from launcher.experiments.branch import branch
from launcher.experiments.replay_plan import plan_replay
from launcher.runs.run_directory import RunDirectory
from launcher.training import run_description
from launcher.training.loop import Training
from recipes.errors import UserError
from recipes.schema import Recipe
from tests.launcher.experiments.short_runs import OPTIONS, short_recipe, train_steps
from tests.launcher.process_group import Group, train_until


@pytest.fixture(scope="module")
def killed(digits, tmp_path_factory) -> Path:
    """A run of 6 steps, with checkpoints of steps 2, 4 and 6, that lost step 3 to a kill and resumed after step 2."""
    run, recipe = tmp_path_factory.mktemp("runs") / "killed", short_recipe(digits, save_every=2)
    train_steps(recipe, run, 3)
    shutil.rmtree(run / "checkpoints" / "step-00000003")
    return train_steps(recipe, run, 6)


def replay(bigbatch, run: Path, step: int, *options: str) -> tuple[int, dict]:
    """Exit code and JSON of a replay in this process."""
    code, shown, error = bigbatch("replay", run, "--step", step, "--json", "--workers", 0, *options)
    assert not shown or code in (0, 1), error
    return code, json.loads(shown.splitlines()[-1])


def flip_bit(tensor: torch.Tensor) -> None:
    """Flip the highest bit of the mantissa of the first element."""
    with torch.no_grad():
        tensor.view(-1)[:1].view(torch.int32).bitwise_xor_(1 << 22)


def train_with_flipped_bit(recipe: Recipe, run: Path, steps: int, after: int, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Train; a bit of a weight flips in memory after that many updates."""
    update = DataParallel.update

    def corrupted(engine, *arguments):
        update(engine, *arguments)
        if engine.updates == after:
            flip_bit(engine.module.get_classifier().weight)

    with monkeypatch.context() as patch:
        patch.setattr(DataParallel, "update", corrupted)
        return train_steps(recipe, run, steps)


def test_it_equals_the_run_bit_for_bit_after_a_kill(killed, bigbatch):
    code, found = replay(bigbatch, killed, 1, "--steps", "99")
    assert (code, found["difference"]) == (0, None) and found["exact"]
    assert (found["begin"], found["end"], found["checkpoints"]) == (0, 6, [2, 4, 6]) and found["changed"] == []


def test_it_begins_at_the_nearest_checkpoint_and_changes_no_file_of_the_run(killed, bigbatch):
    before = {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()}
    code, shown, _ = bigbatch("replay", killed, "--step", 6, "--workers", 0)
    assert code == 0 and "steps 5 to 6 recomputed from the checkpoint of step 4, compared bit for bit" in shown
    assert {path: path.read_bytes() for path in killed.rglob("*") if path.is_file()} == before


def test_a_bit_that_flipped_in_a_weight_while_the_run_trained_is_found(digits, tmp_path, bigbatch, monkeypatch):
    """It flips after step 3, which no checkpoint holds, so the loss of step 4 is the first trace."""
    run = train_with_flipped_bit(
        short_recipe(digits, save_every=2), tmp_path / "run", 4, after=3, monkeypatch=monkeypatch
    )
    code, found = replay(bigbatch, run, 4)
    assert code == 1 and (found["difference"]["step"], found["difference"]["layer"]) == (4, "forward (loss)")
    code, shown, _ = bigbatch("replay", run, "--step", 4, "--workers", 0)
    assert code == 1 and "first difference: step 4, forward (loss)" in shown


def test_a_bit_that_flipped_in_a_weight_before_it_was_saved_is_named(digits, tmp_path, bigbatch, monkeypatch):
    run = train_with_flipped_bit(
        short_recipe(digits, save_every=2), tmp_path / "run", 2, after=2, monkeypatch=monkeypatch
    )
    code, found = replay(bigbatch, run, 1, "--steps", "2")
    difference = found["difference"]
    assert code == 1 and (difference["step"], difference["layer"]) == (2, "update (weights)")
    assert (difference["second"]["name"], difference["second"]["elements"]) == ("weights/head.fc.weight", 1)


def test_a_changed_pixel_is_named(killed, bigbatch, monkeypatch):
    read = MicroBatches._image

    def changed(batches, sample, *arguments):
        pixels, *rest = read(batches, sample, *arguments)
        pixels[0, 5, 5] ^= sample % 97 == 0
        return pixels, *rest

    monkeypatch.setattr(MicroBatches, "_image", changed)
    code, found = replay(bigbatch, killed, 3, "--steps", "4")
    assert code == 1 and found["difference"]["layer"] == "pixels"


def test_a_library_that_computes_something_else_is_named(killed, bigbatch, monkeypatch):
    normalised = DevicePreprocessor.normalised
    monkeypatch.setattr(DevicePreprocessor, "normalised", lambda self, pixels: normalised(self, pixels) * (1 + 1e-6))
    monkeypatch.setattr(run_description, "version", lambda name: "9.9" if name == "torch" else "1")
    code, shown, _ = bigbatch("replay", killed, "--step", 5, "--workers", 0)
    assert code == 1 and "first difference: step 5, forward (loss)" in shown
    assert f"note: torch was {torch.__version__.partition('+')[0]}" in shown and "and is 9.9 here" in shown


def test_another_cut_agrees_within_rounding(digits, tmp_path, bigbatch):
    """The run has 2 processes; one process repeats it with `--cut here` and is refused without."""
    run = tmp_path / "run"
    Group(2, short_recipe(digits), run, target=train_until, step=2, micro_batch=16).finish()
    code, found = replay(bigbatch, run, 1, "--steps", "2", "--cut", "here")
    assert code == 0 and not found["exact"] and found["checkpoints"] == [1, 2]
    assert ("cut", "64 = 2 processes × 16 × 2 accumulation steps") in [tuple(one[:2]) for one in found["changed"]]
    with pytest.raises(UserError, match="computed by 2 processes and 1 were started"):
        plan_replay(RunDirectory(run), 1, 1).engine_then(1, False)


@pytest.mark.slow
def test_zero_agrees_with_ddp_within_rounding(digits, tmp_path, bigbatch):
    run, recipe = tmp_path / "run", short_recipe(digits, "engine.zero=2")
    Group(2, recipe, run, target=train_until, step=2, micro_batch=16).finish()
    directory = RunDirectory(run)
    directory.write(recipe.variant(engine={"zero": 0}), directory.metadata())
    code, found = replay(bigbatch, run, 1, "--steps", "2", "--cut", "here")
    assert code == 0 and not found["exact"] and ["engine", "ZeRO-2", "DDP"] in found["changed"]


@pytest.mark.slow
def test_the_command_starts_as_many_processes_as_the_run_had(digits, tmp_path, bigbatch):
    run = tmp_path / "run"
    Group(2, short_recipe(digits), run, target=train_until, step=2, micro_batch=16).finish()
    code, shown, error = bigbatch("replay", run, "--step", 2, "--workers", 0)
    assert code == 0 and "64 = 2 processes × 16" in shown and "compared bit for bit" in shown, error


def test_what_cannot_be_replayed_is_said(killed, tmp_path):
    run = RunDirectory(killed)
    with pytest.raises(UserError, match="no record of step 7: give one from 1 to 6"):
        plan_replay(run, 7, 1)
    branch(run, tmp_path / "branch", 4, ["optimizer.lr=1e-3"])
    train_steps(RunDirectory(tmp_path / "branch").recipe(), tmp_path / "branch", 5, OPTIONS)
    with pytest.raises(UserError, match="left at step 4: replay"):
        plan_replay(RunDirectory(tmp_path / "branch"), 4, 1)
    assert plan_replay(RunDirectory(tmp_path / "branch"), 5, 1).begin == 4


def test_shards_that_moved_are_given_anew_and_other_ones_are_refused(killed, digits, toy_shards, tmp_path, bigbatch):
    moved = Path(shutil.copytree(digits, tmp_path / "moved"))
    assert replay(bigbatch, killed, 1, "--data", str(moved))[0] == 0
    recipe, run = RunDirectory(killed).recipe(), RunDirectory(Path(shutil.copytree(killed, tmp_path / "run")))
    run.write(recipe.variant(data={"path": str(tmp_path / "gone")}), run.metadata())
    code, _, error = bigbatch("replay", run.path, "--step", 1)
    assert code == 2 and f"are not in {tmp_path / 'gone'}: say with --data where they are now" in error
    code, _, error = bigbatch("replay", killed, "--step", 1, "--data", toy_shards(*"abcdefghij"))
    assert code == 2 and "holds shards other than those of" in error and "give these with --data" in error


def test_an_edited_recipe_is_no_recipe_of_the_run(killed, tmp_path):
    run = RunDirectory(Path(shutil.copytree(killed, tmp_path / "run")))
    run.write(run.recipe().variant(optimizer={"lr": 1.0}), run.metadata())
    with pytest.raises(UserError, match="recipe.yaml was changed since the run trained"):
        plan_replay(run, 1, 1)


def test_a_run_of_a_version_that_recorded_less_is_compared_in_what_it_recorded(killed, tmp_path, bigbatch):
    run = Path(shutil.copytree(killed, tmp_path / "run"))
    kept = {"event", "step", "time", "cut", "engine", "device", "precision", "loss", "lr"}
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    lines = [json.dumps({name: event[name] for name in event if name in kept}) for event in events]
    (run / "metrics.jsonl").write_text("\n".join(lines) + "\n")
    code, shown, _ = bigbatch("replay", run, "--step", 5, "--workers", 0)
    assert code == 0 and "equal in every step: learning rate, forward (loss)\n" in shown
    (run / "metrics.jsonl").unlink()
    with pytest.raises(UserError, match="has recorded no steps yet"):
        plan_replay(RunDirectory(run), 1, 1)


def test_ctrl_c_stops_after_the_step_and_what_was_recomputed_is_compared(killed, bigbatch, monkeypatch):
    step = Training._step

    def interrupted(self, number, *rest):
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, number, *rest) or True

    monkeypatch.setattr(Training, "_step", interrupted)
    code, shown, error = bigbatch("replay", killed, "--step", 3, "--steps", 4, "--workers", 0)
    assert code == 130 and "steps 3 to 3 recomputed" in shown and "equal" in shown
    assert "stopping after this step; Ctrl-C again" in error and "stopped after step 3 of 6" in error
