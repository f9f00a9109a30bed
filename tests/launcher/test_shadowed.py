"""A working directory with Python files of our packages' names, as many repositories have, does not shadow ours."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from tests.launcher.comparison import losses
from tests.launcher.conftest import SMALL

BIN = Path(sys.executable).parent
TORCHRUN = [BIN / "torchrun", "--standalone", "--nproc-per-node", "2"]
ACCELERATE = [BIN / "accelerate", "launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "PORT"]
SCRIPT = {  # ways to launch the `bigbatch` script, which Python runs with the script's folder first on its path
    "one process": [BIN / "bigbatch", "train", "--procs", "1"],
    "--procs": [BIN / "bigbatch", "train", "--procs", "2"],
    "accelerate launch bigbatch": [*ACCELERATE, BIN / "bigbatch", "train"],
}
MODULE = {  # ways to launch the module, for which Python puts the working directory first
    "python -m": [sys.executable, "-m", "launcher.train"],
    "torchrun -m": [*TORCHRUN, "-m", "launcher.train"],
    "accelerate launch -m": [*ACCELERATE, "-m", "launcher.train"],
}


def train(digits: Path, folder: Path, launcher: list) -> subprocess.CompletedProcess:
    """Train one step in that working directory."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        command = [str(probe.getsockname()[1]) if part == "PORT" else str(part) for part in launcher]
    short = ["schedule.epochs=1", "schedule.warmup_epochs=0", "batch.global=1024", "batch.slices=8"]
    arguments = ["demo", *SMALL, *short, "--data", digits, "--run-dir", "run", "--workers", "0", "--micro-batch", "64"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [*command, *arguments], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def fill(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("x = 1\n")


@pytest.mark.slow
@pytest.mark.parametrize("launcher", [*SCRIPT, *MODULE])
def test_packages_and_modules_of_the_working_directory_are_not_taken_for_ours(digits, tmp_path, launcher):
    fill(tmp_path, "data.py", "recipes.py", "slurm/job.py")
    if launcher in SCRIPT:  # the module cannot: Python looks for `launcher` there before any code of ours runs
        fill(tmp_path, "launcher/__init__.py", "launcher/train.py", "models.py")
    else:
        fill(tmp_path, "models/__init__.py", "models/build.py")
    done = train(digits, tmp_path, {**SCRIPT, **MODULE}[launcher])
    assert done.returncode == 0, done.stdout + done.stderr
    assert len(losses(tmp_path / "run")) == 1
