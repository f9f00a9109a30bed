"""The branches for GPUs run, and train as a CPU does: `sitecustomize` says how that is possible without a GPU."""

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from launcher.checkpoints import checkpoint
from launcher.processes import run_processes
from launcher.runs.run_directory import RunDirectory
from recipes.load import load
from tests.launcher.comparison import assert_same_curve, losses
from tests.launcher.conftest import SMALL, digits, fresh_accelerate_state  # noqa: F401 - fixtures
from tests.launcher.process_group import train_group
from tests.preloaded import MODULES, Server

STAND_IN = Path(__file__).parent
ROOT = STAND_IN.parents[1]
CHANGES = [*SMALL, "batch.global=256", "schedule.epochs=1", "schedule.warmup_epochs=0"]
STEPS = 5

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def on_a_cpu(digits, tmp_path_factory) -> Path:  # noqa: F811
    """A run without any GPU, to compare with."""
    run = tmp_path_factory.mktemp("cpu") / "run"
    train_group(1, load("demo", [*CHANGES, f"data.path={digits}"]), run, micro_batch=64)
    return run


@pytest.fixture(autouse=True)
def two_gpus(monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(STAND_IN)]))
    monkeypatch.setenv("STAND_IN_GPUS", "2")
    # An earlier test that imported DeepSpeed into this process has told it that there is no GPU.
    for name in ("CUDA_VISIBLE_DEVICES", "SLURM_PROCID", "DS_ACCELERATOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "executable", str(stand_in_server().python))


@functools.cache
def stand_in_server() -> Server:
    return Server(MODULES, PYTHONPATH=os.environ["PYTHONPATH"], STAND_IN_GPUS="2")


def train(digits: Path, run: Path, ranks: int, *arguments: str) -> None:  # noqa: F811
    """Train on as many GPUs, and check that they were used."""
    given = ["demo", *CHANGES, *arguments, "--data", str(digits), "--run-dir", str(run)]
    assert run_processes("launcher.train", given, ranks) == 0
    check_device(run)


def torchrun(digits: Path, run: Path, ranks: int) -> str:  # noqa: F811
    """Start a training by torchrun that fails; return what it and its ranks printed."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), "-m", "launcher.train"]
    given = ["demo", *CHANGES, "--data", str(digits), "--run-dir", str(run)]
    found = subprocess.run([sys.executable, *launcher, *given], capture_output=True, text=True, timeout=240)
    assert found.returncode, found.stdout
    return found.stdout + found.stderr


def check_device(run: Path) -> None:
    start = json.loads((run / "metrics.jsonl").read_text().splitlines()[0])
    assert start["device"] == "NVIDIA A100-SXM4-40GB"


def test_one_gpu_trains_as_a_cpu_with_pinned_memory_and_a_profile(digits, on_a_cpu, tmp_path):  # noqa: F811
    train(digits, tmp_path / "run", 1, "--micro-batch", "64", "--workers", "1", "--profile", "2")
    assert losses(tmp_path / "run") == losses(on_a_cpu)
    assert "of the time" in (tmp_path / "run" / "profile" / "profile.txt").read_text()


def test_a_job_checks_its_nodes_over_gloo_and_trains_over_nccl(digits, on_a_cpu, tmp_path, capfd, monkeypatch):  # noqa: F811
    """Each process sees only its own GPU, as under `srun --gpus-per-task=1`. Lines are still printed once."""
    monkeypatch.setenv("STAND_IN_GPUS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("STAND_IN_BOUND", "1")
    run = tmp_path / "run"
    job = RunDirectory(run / "job").recipe_file  # as `bigbatch submit` leaves it
    job.parent.mkdir(parents=True)
    job.write_text(yaml.safe_dump(load("demo", [*CHANGES, f"data.path={digits}"]).to_dict()))
    assert run_processes("launcher.job", [str(run), "--micro-batch", "64", "--workers", "0"], 2) == 0
    output = capfd.readouterr()
    assert output.out.count(f"{STEPS} steps of 256 = 2 processes") == output.out.count("finished: ") == 1
    assert "preflight: 2 processes" in output.out and "all-reduce" in output.out and "Warning" not in output.err
    check_device(run)
    assert_same_curve(run, on_a_cpu, steps=STEPS)


def test_torchrun_with_more_ranks_than_gpus_ends_with_one_sentence(digits, tmp_path):  # noqa: F811
    printed = torchrun(digits, tmp_path / "run", 3)
    assert printed.count("3 processes were started on a node with 2 visible GPUs") == 1, printed
    assert printed.count("error: ") == 1, printed


def test_torchrun_with_two_ranks_on_one_visible_gpu_ends_with_one_sentence(digits, tmp_path, monkeypatch):  # noqa: F811
    monkeypatch.setenv("STAND_IN_GPUS", "1")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    printed = torchrun(digits, tmp_path / "run", 2)
    assert printed.count("error: ranks 0 and 1 were started on the same GPU, and each needs its own") == 1, printed


@pytest.mark.parametrize(
    "ranks, engine",
    [
        (1, ["engine.zero=1"]),
        (2, ["engine.zero=2", "engine.checkpoint_activations=true"]),
        (2, ["engine.zero=3", "engine.offload=cpu"]),
    ],
    ids=["1", "2 with checkpointing", "3 with offload"],
)
def test_every_stage_of_zero_trains_as_a_cpu(digits, on_a_cpu, tmp_path, ranks, engine):  # noqa: F811
    train(digits, tmp_path / "run", ranks, "--micro-batch", "64", "--workers", "0", *engine)
    assert_same_curve(tmp_path / "run", on_a_cpu, steps=STEPS)


def test_ranks_that_run_out_of_memory_halve_the_micro_batch(digits, tmp_path, monkeypatch, capfd):  # noqa: F811
    """In fp16, whose loss scale is saved, halved for each update that was dropped."""
    monkeypatch.setenv("STAND_IN_LARGEST", str(5 * 2**20))  # the images of a micro-batch of 128 take 6 MiB
    train(digits, tmp_path / "run", 2, "--workers", "0", "engine.precision=fp16", "input.size=64")
    assert "out of memory before the first step with micro-batch 128: retrying with 64" in capfd.readouterr().out
    saved = checkpoint.latest_valid(tmp_path / "run" / "checkpoints").scalars
    assert saved["loss_scale"] == 2.0 ** (16 - (STEPS - saved["updates"])) and saved["updates"] >= STEPS - 2


def test_calibration_measures_a_gpu_in_each_precision(tmp_path):
    (tmp_path / "small.py").write_text(
        "import launcher.planning.calibration as c; c._SECONDS = 0.1; c._PLAIN_SIZES = {'cuda': (64, 1024)}\n"
        "from launcher.cli.main import main; main()\n"
    )
    command = [sys.executable, "-m", "small", "plan", "demo", "--calibrate", "model.name=test_convnext"]
    environment = os.environ | {"XDG_CONFIG_HOME": str(tmp_path)}
    found = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
    for precision in ("float32", "bf16", "fp16"):
        assert f"NVIDIA A100-SXM4-40GB, {precision}: " in found.stdout
