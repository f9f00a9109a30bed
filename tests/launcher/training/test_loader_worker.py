"""A loader worker that dies ends the training with one sentence."""

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.launcher.conftest import start_training


def _loader_worker_of(trainer: int) -> int:
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            name, _, fields = (folder / "stat").read_text().rpartition(") ")
        except OSError:  # it has just ended
            continue
        if name.endswith("(pt_data_worker") and int(fields.split()[1]) == trainer:
            return int(folder.name)
    raise AssertionError("the training has no loader worker")


@pytest.mark.slow
def test_a_training_whose_loader_worker_is_killed_says_so_and_exits_with_2(digits, tmp_path):
    """As the kernel does when memory runs out."""
    run = tmp_path / "run"
    training = start_training(digits, run, "schedule.epochs=1000", python=sys.executable)
    deadline = time.monotonic() + 120
    while not ((run / "metrics.jsonl").exists() and '"loss"' in (run / "metrics.jsonl").read_text()):
        assert time.monotonic() < deadline and training.poll() is None
        time.sleep(0.1)
    os.kill(_loader_worker_of(training.pid), signal.SIGKILL)
    output, _ = training.communicate(timeout=120)
    assert training.returncode == 2 and "Traceback" not in output, output
    assert output.splitlines()[-1].startswith("error: a loader worker was killed by signal 9 (SIGKILL), most often"), (
        output
    )
