"""The benchmark for a GPU runs at a small size on a CPU, so that it works when there is a GPU."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.benchmarks import gpu_step
from tests.benchmarks.rows import LEFT_OUT, read_rows, write_row

ROOT = Path(__file__).parents[2]
CONTENDERS = [
    "ours, DDP",
    "bare loop",
    "timm's script",
    "ours, ZeRO-1",
    "ours, DDP, no EMA",
    "ours, DDP, real loader",
    "ours, DDP, again",
]


@pytest.mark.slow
def test_every_contender_takes_steps_and_the_targets_come_first(tmp_path):
    assert gpu_step.main(["--small", "--seconds", "0.1", "--rows", str(tmp_path / "rows")]) == 0
    rows = read_rows(tmp_path / "rows")
    assert [row["contender"] for row in rows if row["model"] == "test_convnext"] == CONTENDERS
    assert {row["model"] for row in rows} == {"test_convnext", "test_resnet"}
    assert all(row["images_per_second"] > 0 and row["from"] <= row["images_per_second"] <= row["to"] for row in rows)


@pytest.mark.slow
def test_every_contender_takes_steps_on_the_stand_in_for_a_gpu(tmp_path):
    environment = {name: value for name, value in os.environ.items() if name != "DS_ACCELERATOR"}  # set by DeepSpeed
    environment |= {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests' / 'cuda_stand_in'}", "STAND_IN_GPUS": "1"}
    command = ["tests.benchmarks.gpu_step", "--small", "--recipes", "convnext_tiny_in1k", "--seconds", "0.01", "--rows"]
    arguments = [sys.executable, "-m", *command, str(tmp_path / "rows")]
    done = subprocess.run(arguments, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    rows = read_rows(tmp_path / "rows")
    assert [row["contender"] for row in rows] == CONTENDERS
    assert {row["device"] for row in rows} == {"NVIDIA A100-SXM4-40GB"}


@pytest.mark.slow
def test_the_next_start_measures_only_what_was_left_out_or_failed(tmp_path, monkeypatch, capsys):
    file, failures = tmp_path / "rows", ["kernel missing"]
    small = ["--small", "--recipes", "convnext_tiny_in1k", "--seconds", "0.01", "--rows", str(file)]
    assert gpu_step.main([*small, "--minutes", "0"]) == LEFT_OUT
    assert "test_convnext, bare loop: not measured, no time left" in capsys.readouterr().out
    for contender in CONTENDERS[2:]:
        write_row(file, {"model": "test_convnext", "contender": contender})
    measure = gpu_step.measure

    def fails_once(*arguments):
        if failures:
            raise RuntimeError(failures.pop())
        return measure(*arguments)

    monkeypatch.setattr(gpu_step, "measure", fails_once)
    assert gpu_step.main(small) == 1
    assert "test_convnext, ours, DDP: failed" in (printed := capsys.readouterr().out) and "kernel missing" in printed
    assert gpu_step.main(small) == 0
    assert [row["contender"] for row in read_rows(file)] == [*CONTENDERS[2:], "bare loop", "ours, DDP"]
