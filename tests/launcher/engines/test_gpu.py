"""On a machine with a GPU, `pytest -m gpu` shows that training there follows the curve of a CPU."""

import subprocess
import sys

import pytest
import torch

from tests.launcher.comparison import inputs, losses
from tests.launcher.conftest import SMALL

STEPS = [*SMALL, "schedule.epochs=1", "schedule.warmup_epochs=0", "batch.global=256", "engine.precision=float32"]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("zero", [0, 1])
def test_a_gpu_follows_the_curve_of_a_cpu(digits, tmp_path, monkeypatch, zero):
    """The same inputs bit for bit, and losses that differ by the rounding of other kernels."""

    def run(name: str):
        given = ["--data", digits, "--run-dir", tmp_path / name, "--micro-batch", "64", f"engine.zero={zero}"]
        command = [sys.executable, "-m", "launcher", "train", "demo", *STEPS, *map(str, given)]  # not a forked process
        subprocess.run(command, check=True, timeout=300)
        return tmp_path / name

    on_gpu = run("gpu")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    on_cpu = run("cpu")
    assert inputs(on_gpu) == inputs(on_cpu)
    assert losses(on_gpu) == pytest.approx(losses(on_cpu), rel=1e-3)
