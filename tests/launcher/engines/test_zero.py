"""ZeRO at every stage is the same run as plain data parallelism: curve, weights, moments, average, evaluation."""

import socket
import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch.utils.cpp_extension import get_default_build_root

from launcher.checkpoints import checkpoint
from launcher.engines.optimizer import EMA
from launcher.runs.run_directory import RunDirectory
from recipes.load import load
from recipes.schema import Recipe
from tests.launcher.comparison import assert_same_curve, assert_same_state, losses
from tests.launcher.conftest import SMALL
from tests.launcher.process_group import Group, train_group, train_until
from tests.preloaded import training_server

pytestmark = pytest.mark.slow

STEPS = [
    "schedule.epochs=2",
    "schedule.warmup_epochs=1",
    "batch.global=192",
    "batch.slices=12",
    "run.evaluate_every=1",
]  # 7 an epoch


def evaluations(run: Path) -> list[tuple]:
    return [
        (event["images"], event["top1"], event["ema_top1"])
        for event in RunDirectory(run).metrics.events()
        if event["event"] == "evaluation"
    ]


def assert_same_run(run: Path, reference: Path) -> None:
    assert_same_curve(run, reference, steps=len(losses(reference)))
    assert evaluations(run) == evaluations(reference)
    assert_same_state(run, reference)


@pytest.fixture(scope="module")
def train_once(digits, tmp_path_factory):
    """Train a variant of the small recipe once and return its run directory."""
    finished = {}

    def train(world_size: int, *changes: str, micro_batch: int = 32) -> Path:
        key = (world_size, changes, micro_batch)
        if key not in finished:
            run = tmp_path_factory.mktemp("runs") / "run"
            train_group(
                world_size,
                load("demo", [*SMALL, *STEPS, f"data.path={digits}", *changes]),
                run,
                micro_batch=micro_batch,
            )
            finished[key] = run
        return finished[key]

    return train


@pytest.mark.parametrize("offload", ["none", "cpu"])
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_every_stage_is_the_same_run_as_plain_data_parallelism(train_once, zero, offload):
    """2 ranks, 3 accumulation steps (a first, a last and one between), float32, 14 steps, every ingredient on."""
    assert_same_run(train_once(2, f"engine.zero={zero}", f"engine.offload={offload}"), train_once(2))


@pytest.mark.parametrize("zero", [0, 3])
def test_activation_checkpointing_draws_the_same_masks_again(train_once, zero):
    checkpointed = train_once(
        2, f"engine.zero={zero}", "engine.checkpoint_activations=true", "schedule.epochs=1", "schedule.warmup_epochs=0"
    )
    assert_same_run(checkpointed, train_once(2, "schedule.epochs=1", "schedule.warmup_epochs=0"))


@pytest.mark.parametrize("zero", [2, 3])
def test_clipping_layer_decay_and_sgd_are_the_same_at_every_stage(train_once, zero):
    changes = ["optimizer.clip_grad=0.5", "optimizer.layer_decay=0.8", "optimizer.name=sgd", "optimizer.lr=0.05"]
    changes += ["schedule.epochs=1", "schedule.warmup_epochs=0"]
    assert_same_run(train_once(2, f"engine.zero={zero}", *changes), train_once(2, *changes))


@pytest.mark.parametrize("zero", [1, 3])
def test_batch_norm_models_have_the_same_statistics_at_every_stage(digits, tmp_path, zero):
    """Four steps only: here, nearly constant channels make BatchNorm multiply rounding errors by 300 at every step."""
    changes = [
        "model.name=test_resnet",
        "model.layer_scale=null",
        "model.drop_path=0",
        "optimizer.name=sgd",
        "optimizer.lr=0.005",
    ]
    for stage in (0, zero):
        recipe = load("demo", [*SMALL, *STEPS, f"data.path={digits}", *changes, f"engine.zero={stage}"])
        Group(2, recipe, tmp_path / f"zero {stage}", train_until, step=4, micro_batch=16).finish()
    run, reference = tmp_path / f"zero {zero}", tmp_path / "zero 0"
    assert_same_curve(run, reference, steps=4)
    ours, expected = (checkpoint.latest_valid(folder / "checkpoints").reader() for folder in (run, reference))
    for kind in ("buffers", "buffers_ema"):
        for name, value in expected.tensors(kind).items():
            torch.testing.assert_close(ours.tensor(kind, name), value, rtol=1e-5, atol=1e-6, msg=name)
        assert any(name.endswith("running_var") for name in expected.tensors(kind))


def _async_io_is_compiled() -> bool:
    """Return whether this environment's DeepSpeed has it; environments of a user share the folder of extensions."""
    package = Path(find_spec("deepspeed").origin).parent
    for library in Path(get_default_build_root()).glob("**/async_io.so"):
        rules = library.with_name("build.ninja")
        if f"{package}/" in rules.read_text() and library.stat().st_mtime > rules.stat().st_mtime:
            return True
    return False


def test_state_on_a_disk_is_the_same_run_and_is_saved_and_continued(digits, tmp_path):
    """DeepSpeed's async_io reads and writes moments and EMA; it takes minutes to compile when first used."""
    if not _async_io_is_compiled():
        pytest.skip("needs DeepSpeed's async_io: apt-get install libaio-dev, then run once with engine.offload=nvme")
    changes = [
        "model.name=convnext_atto",
        "batch.global=32",
        "batch.slices=2",
        f"data.path={digits}",
        "schedule.warmup_epochs=0",
    ]
    engines = {
        "ddp": [],
        "disk": ["engine.zero=3", "engine.offload=nvme", f"engine.nvme_path={tmp_path / 'disk-of-node'}"],
    }
    for name, engine in engines.items():
        for step in (3, 5):
            Group(
                2, load("demo", [*SMALL, *changes, *engine]), tmp_path / name, train_until, step=step, micro_batch=16
            ).finish()
    assert list((tmp_path / "disk-of-node").glob("**/*.swp")), "nothing was put on the disk"
    assert_same_run(tmp_path / "disk", tmp_path / "ddp")


def train_with_a_scaled_loss(recipe: Recipe, run: Path, step: int, exponent: int, **options) -> None:
    """Train on each rank in float32, but with fp16's loss scale, so high that the first gradients overflow."""
    from accelerate import Accelerator

    from launcher.engines import loss_scale
    from launcher.engines.zero import Zero

    apply = Zero.apply_gradient

    def checked(self, lr):
        before = [(flat.clone(), self.optimizer.state[flat][EMA].clone()) for flat in self._with_ema()]
        applied = apply(self, lr)
        for flat, (weights, ema) in zip(self._with_ema(), before):
            assert (
                torch.equal(flat, weights) != applied and torch.equal(self.optimizer.state[flat][EMA], ema) != applied
            )
            assert int(self.optimizer.state[flat]["step"]) == self.updates + applied
        return applied

    Zero._with_ema = lambda self: [f for f in self.partitions.flats if EMA in self.optimizer.state.get(f, {})]
    Zero.apply_gradient = checked

    Accelerator.mixed_precision = property(lambda self: "fp16")
    loss_scale.LossScale.__init__.__defaults__ = (2.0**exponent, 0)
    train_until(recipe, run, step=step, **options)


@pytest.mark.parametrize("zero, exponent", [(1, 70), (3, 128)])  # stage 1 squares the norm in float32
def test_a_gradient_that_overflows_is_dropped_by_all_processes_and_the_count_is_kept(digits, tmp_path, zero, exponent):
    """Moments count updates, not steps; a restart in the middle changes nothing."""
    changes = [
        f"data.path={digits}",
        f"engine.zero={zero}",
        "batch.global=24",
        "batch.slices=3",
        "schedule.warmup_epochs=0",
    ]
    recipe = load("demo", [*SMALL, *changes])
    numbers = []
    for name, stops in (("at once", [12]), ("restarted", [5, 12])):
        for step in stops:
            Group(
                2, recipe, tmp_path / name, train_with_a_scaled_loss, step=step, exponent=exponent, micro_batch=12
            ).finish()
        numbers.append(checkpoint.latest_valid(tmp_path / name / "checkpoints").scalars)
    dropped = 12 - numbers[0]["updates"]
    assert (
        3 <= dropped <= 11
        and numbers[0]["loss_scale"] == 2.0 ** (exponent - dropped)
        and numbers[0]["good_steps"] == 12 - dropped
    )
    assert numbers[1] == numbers[0] and losses(tmp_path / "restarted") == losses(tmp_path / "at once")
    weights = checkpoint.latest_valid(tmp_path / "at once" / "checkpoints").reader().tensors("weights")
    assert all(value.isfinite().all() for value in weights.values())


@pytest.mark.parametrize(
    "launcher, changes",
    [
        ("launcher train --procs 2", ["engine.zero=2"]),
        ("torch.distributed.run --standalone --nproc-per-node 2 -m launcher.train", ["engine.zero=2"]),
        ("deepspeed.launcher.runner --num_gpus 2 --master_port PORT --module launcher.train", ["engine.zero=2"]),
        (
            "accelerate.commands.launch --use_deepspeed --zero_stage 2 --num_processes 2 --main_process_port PORT "
            "-m launcher.train",
            [],
        ),
    ],
    ids=["bigbatch train", "torchrun", "deepspeed", "accelerate launch with a config that names DeepSpeed"],
)
def test_every_launcher_starts_the_same_zero(digits, tmp_path, train_once, launcher, changes):
    short = ["schedule.epochs=1", "schedule.warmup_epochs=0"]
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        command = launcher.replace("PORT", str(probe.getsockname()[1])).split()
    options = ["--data", digits, "--run-dir", tmp_path / "run", "--workers", "0", "--micro-batch", "32"]
    arguments = ["-m", *command, "demo", *SMALL, *STEPS, *short, *changes, *options]
    done = subprocess.run([training_server().python, *arguments], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    start = RunDirectory(tmp_path / "run").metrics.events()[0]
    assert (start["engine"], start["cut"]) == ("ZeRO-2", "192 = 2 processes × 32 × 3 accumulation steps")
    assert_same_run(tmp_path / "run", train_once(2, *short))
