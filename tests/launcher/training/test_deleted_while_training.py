"""Files that disappear while a training uses them end it with one sentence, or do not disturb it."""

import shutil
import time
from pathlib import Path

import pytest

from tests.launcher.conftest import start_training


@pytest.mark.slow
@pytest.mark.parametrize("deleted", ["run", "run/checkpoints", "run/tensorboard", "run/metrics.jsonl", "shards"])
def test_no_traceback_when_files_are_deleted_while_training(digits, tmp_path, deleted):
    shards, run = Path(shutil.copytree(digits, tmp_path / "shards")), tmp_path / "run"
    training = start_training(shards, run, "schedule.epochs=2", "schedule.warmup_epochs=1", "run.save_every=2")
    deadline = time.monotonic() + 120
    while not list(run.glob("checkpoints/step-*")):
        assert time.monotonic() < deadline and training.poll() is None
        time.sleep(0.05)
    path = tmp_path / deleted
    # The folder is moved first, since a training that still writes there could keep it from being removed.
    path.rename(tmp_path / "deleted")
    output, _ = training.communicate(timeout=120)
    assert "Traceback" not in output, output
    if training.returncode:
        assert training.returncode == 2 and output.count("error: ") == 1, output
    else:  # open shards stay readable, and what is only written may be made anew
        assert "finished" in output, output
