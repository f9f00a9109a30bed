"""One recipe, one trajectory: the same curve at any cut, through any launcher and any interruption."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from launcher.checkpoints import checkpoint
from launcher.runs.run_directory import RunDirectory
from launcher.training.stop_request import StopRequest
from launcher.training.train import StartOptions, train
from recipes.errors import UserError
from tests.launcher import comparison
from tests.launcher.comparison import losses
from tests.launcher.conftest import start_training, train_to_end
from tests.launcher.process_group import Group, train_group

pytestmark = pytest.mark.slow

THIRTY_STEPS = (
    "schedule.epochs=2",
    "schedule.warmup_epochs=1",
    "batch.global=96",
    "batch.slices=6",
)  # 14 steps an epoch
CUTS = {  # number of processes and micro-batch by what the cut does
    "accumulation": (1, 16),
    "micro-batches that cross slices, padded": (1, 7),
    "2 processes with accumulation": (2, 8),
    "3 processes": (3, 32),
    "5 processes, padded": (5, 10),
}


def final_state(run: Path) -> dict[str, torch.Tensor]:
    saved = checkpoint.latest_valid(run / "checkpoints").reader()
    return {f"{kind}/{name}": value for kind in saved.kinds for name, value in saved.tensors(kind).items()}


def assert_same_curve(run: Path, reference: Path, steps: int = 28) -> None:
    """Losses within 1e-5 relative at each step, final weights and averages within 1e-4."""
    comparison.assert_same_curve(run, reference, steps)
    state = final_state(run)
    for name, value in final_state(reference).items():
        if name.startswith(("weights/", "ema/")):
            torch.testing.assert_close(state[name], value, rtol=1e-4, atol=1e-4, msg=name)


@pytest.fixture(scope="module")
def reference(digits, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("reference") / "run"
    train_to_end(digits, run, *THIRTY_STEPS, "--micro-batch", "96")
    return run


@pytest.mark.parametrize("cut", CUTS)
def test_the_loss_curve_does_not_depend_on_the_cut(small_recipe, tmp_path, reference, cut):
    processes, micro_batch = CUTS[cut]
    train_group(processes, small_recipe(*THIRTY_STEPS), tmp_path / "run", micro_batch=micro_batch, workers=1)
    assert_same_curve(tmp_path / "run", reference)


@pytest.mark.parametrize(
    "launcher",
    [
        ["-m", "launcher", "train", "--procs", "2"],
        ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "launcher.train"],
        [
            "-m",
            "accelerate.commands.launch",
            "--multi_gpu",
            "--num_processes",
            "2",
            "--main_process_port",
            "0",
            "-m",
            "launcher.train",
        ],
    ],
    ids=["bigbatch train", "torchrun", "accelerate launch"],
)
def test_every_launcher_starts_the_same_program(digits, tmp_path, reference, launcher):
    output = train_to_end(digits, tmp_path / "run", *THIRTY_STEPS, "--micro-batch", "8", launcher=launcher)
    assert "96 = 2 processes × 8 × 6 accumulation steps" in output
    assert_same_curve(tmp_path / "run", reference)


def test_the_cut_may_change_in_mid_run(digits, tmp_path, reference):
    """Starts on 3 processes, resumes with 1, then 2: a checkpoint belongs to the run, not to the cut."""
    run = tmp_path / "run"
    for arguments, stop_at in ((["--procs", "3", "--micro-batch", "16"], 5), (["--micro-batch", "32"], 12)):
        process = start_training(digits, run, *THIRTY_STEPS, "run.save_every=2", *arguments)
        wait_for_step(run, stop_at, process)
        process.send_signal(signal.SIGTERM)
        output, _ = process.communicate(timeout=120)
        assert "stopped and saved" in output
    train_to_end(digits, run, *THIRTY_STEPS, "--procs", "2")
    assert_same_curve(run, reference)
    assert [event["cut"] for event in RunDirectory(run).metrics.events() if event["event"] == "start"] == [
        "96 = 3 processes × 16 × 2 accumulation steps",
        "96 = 1 process × 32 × 3 accumulation steps",
        "96 = 2 processes × 48 × 1 accumulation step",
    ]


def test_stopped_and_resumed_at_every_single_step_gives_the_same_bits(small_recipe, tmp_path, monkeypatch):
    recipe = small_recipe("schedule.epochs=1", "schedule.warmup_epochs=0")
    assert train(recipe, tmp_path / "undisturbed", StartOptions(micro_batch=24, workers=0))
    monkeypatch.setattr(StopRequest, "wanted", property(lambda self: True, lambda self, value: None), raising=False)
    for _ in range(22):
        finished = train(recipe, tmp_path / "interrupted", StartOptions(micro_batch=24, workers=0))
    assert finished
    assert losses(tmp_path / "interrupted") == losses(tmp_path / "undisturbed")
    assert_same_bits(tmp_path / "interrupted", tmp_path / "undisturbed")


def assert_same_bits(run: Path, reference: Path) -> None:
    ours, expected = final_state(run), final_state(reference)
    assert ours.keys() == expected.keys()
    assert {name.split("/")[0] for name in expected} >= {"weights", "ema", "exp_avg", "exp_avg_sq"}
    for name, value in expected.items():
        assert torch.equal(ours[name], value), name


@pytest.mark.parametrize("processes", [1, 3])
def test_killed_between_steps_in_a_step_and_while_saving_gives_the_same_bits(small_recipe, tmp_path, processes):
    """SIGKILL of every process, then the same start again."""
    recipe = small_recipe("schedule.epochs=1", "schedule.warmup_epochs=0", "run.save_every=3")
    options = {"micro_batch": 8, "workers": 1}
    train_group(processes, recipe, tmp_path / "undisturbed", **options)
    run = tmp_path / "killed"

    def after_step_5():
        wait_for_step(run, 5, group)

    def in_a_step():
        wait_for_step(run, 10, group)
        time.sleep(0.02)

    def while_saving():
        wait_until(lambda: list((run / "checkpoints").glob(".step-*")), group)

    for moment in (after_step_5, in_a_step, while_saving):
        group = Group(processes, recipe, run, **options)
        moment()
        group.kill()
    train_group(processes, recipe, run, **options)
    assert losses(run) == losses(tmp_path / "undisturbed")
    assert_same_bits(run, tmp_path / "undisturbed")


def test_ctrl_c_saves_and_says_how_to_go_on(digits, tmp_path):
    """As a terminal does it: SIGINT to every process of the group, loader workers included."""
    run = tmp_path / "a run"
    process = start_training(digits, run, "--procs", "2", python=sys.executable, start_new_session=True)
    wait_for_step(run, 2, process)
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 130, output
    assert "resume with: bigbatch train demo" in output and "Traceback" not in output
    reached = RunDirectory(run).metrics.events()[-1]["step"]
    assert checkpoint.latest_valid(run / "checkpoints").step == reached
    assert f"stopped and saved at step {reached}" in output


def test_a_loss_that_is_not_finite_stops_all_processes_and_nothing_is_saved_of_it(digits, tmp_path):
    """The loss is read after the update, so that no GPU waits for it; the update's result is never saved."""
    changes = ["optimizer.lr=1e30", "schedule.warmup_epochs=0", "run.save_every=1"]
    process = start_training(digits, tmp_path / "run", "--procs", "2", *changes)
    output, _ = process.communicate(timeout=120)
    assert process.returncode == 2
    assert "error: the loss of step" in output and "Traceback" not in output
    stopped_at = int(output.split("error: the loss of step ")[1].split()[0])
    saved = checkpoint.latest_valid(tmp_path / "run" / "checkpoints")
    assert saved is not None and saved.step <= stopped_at


def wait_for_step(run: Path, step: int, training: subprocess.Popen | Group) -> None:
    wait_until(lambda: any(event.get("step", 0) >= step for event in RunDirectory(run).metrics.events()), training)


def wait_until(condition, training: subprocess.Popen | Group, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        if isinstance(training, Group):
            assert all(process.poll() is None for process in training.processes), training.log.read_text()
        else:
            assert training.poll() is None, training.stdout.read()
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.005)


def test_a_loss_that_is_not_finite_before_any_update_is_not_blamed_on_the_learning_rate(small_recipe, tmp_path):
    """The first loss depends on weights and images alone."""
    recipe = small_recipe("schedule.epochs=1", "schedule.warmup_epochs=0")
    weights = timm.create_model(recipe.model.name, num_classes=10, in_chans=3).state_dict()
    weights["stem.0.weight"].fill_(1e38)  # finite, or they would not be loaded
    save_file(weights, tmp_path / "weights.safetensors")
    with pytest.raises(
        UserError, match="before the first update .*weights.safetensors are of a usual size.*bigbatch verify"
    ) as caught:
        train(small_recipe(f"model.weights={tmp_path}/weights.safetensors"), tmp_path / "run", StartOptions(workers=0))
    assert "optimizer.lr" not in str(caught.value) and "\n" not in str(caught.value)
