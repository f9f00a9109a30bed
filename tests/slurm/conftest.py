"""A real SLURM cluster for the tests of this folder, and a short way to use `bigbatch` on it."""

import json
import os
import time
from pathlib import Path

import pytest

from launcher.runs.runs_table import RunStatus, run_statuses
from tests.command_line import run_command
from tests.launcher.conftest import SMALL, digits, train_to_end  # noqa: F401 (a fixture)
from tests.slurm.cluster import TestCluster, why_not_here

# 22 steps in one epoch; a checkpoint every 4 steps, so that a kill loses some.
SHORT = [*SMALL, "schedule.epochs=1", "schedule.warmup_epochs=0", "run.save_every=4"]
PATIENCE = 240  # seconds for a training to get somewhere on a slow machine


@pytest.fixture(scope="session")
def cluster(tmp_path_factory) -> TestCluster:
    reason = why_not_here()
    if reason:
        (pytest.fail if os.environ.get("CI") == "true" else pytest.skip)(reason)
    cluster = TestCluster(tmp_path_factory.mktemp("slurm"))
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()


@pytest.fixture
def bigbatch(cluster, command, monkeypatch):
    """Run the command on the cluster in a folder of its own; return exit code, stdout and stderr."""
    for name, value in cluster.environment.items():
        monkeypatch.setenv(name, value)
    cluster.become_idle()
    return command


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    """Run the command in a folder of its own; return exit code, stdout and stderr."""
    for name, value in {"OMP_NUM_THREADS": "1", "XDG_CONFIG_HOME": str(tmp_path / "config")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)

    def run(*arguments) -> tuple[int, str, str]:
        return run_command(monkeypatch, *arguments), *capfd.readouterr()

    return run


@pytest.fixture
def submitted(bigbatch, digits):  # noqa: F811
    """Submit, successfully; return what was printed."""

    def submit(*arguments) -> str:
        code, output, errors = bigbatch("submit", *arguments, "--data", digits, "--workers", 0)
        assert code == 0, errors
        return output

    return submit


@pytest.fixture(scope="session")
def reference(digits, tmp_path_factory) -> Path:  # noqa: F811
    """The run of `SHORT` in one process, undisturbed."""
    run = tmp_path_factory.mktemp("reference") / "run"
    train_to_end(digits, run, *SHORT, "--micro-batch", "64")
    return run


def row(run: Path) -> RunStatus:
    """The run as `bigbatch runs` shows it."""
    return run_statuses(run)[0]


def job_id(run: Path) -> str:
    return json.loads((run / "job" / "submission.json").read_text())["job_id"]


def log_of(run: Path, rank: int = 0) -> str:
    return (
        Path(json.loads((run / "job" / "submission.json").read_text())["folder"]) / f"{job_id(run)}_{rank}_log.out"
    ).read_text()


def wait_for(run: Path, condition, seconds: float = PATIENCE) -> RunStatus:
    """Wait until the run's row in the table is as wanted, and return it."""
    deadline = time.monotonic() + seconds
    while not condition(found := row(run)):
        logs = "\n".join(
            f"{path.name}: ...{path.read_text()[-3000:]}" for path in sorted((run / "job").glob("*_log.out"))
        )
        assert time.monotonic() < deadline, f"it did not happen in time: {found}\n{logs}"
        assert found.state not in ("COMPLETED", "FAILED", "LOST", "TIMEOUT"), f"{found}\n{logs}"
        time.sleep(0.3)
    return found


def wait_for_end(run: Path, seconds: float = PATIENCE) -> RunStatus:
    return wait_for(run, lambda found: found.state == "COMPLETED", seconds)


def slow_down(run: Path, cluster: TestCluster) -> Path:
    """Let a held job go, each of its steps taking as many seconds longer as the returned file says, while it exists.

    A tiny model would be done before anything could happen to it. The code of the job is changed where it is kept for
    it.
    """
    slow = run / "slow"
    slow.write_text("2")
    with (run / "job" / "code" / "launcher" / "training" / "loop.py").open("a") as code:
        code.write(_SLOW_STEP.format(slow=str(slow)))
    cluster.run("scontrol", "release", job_id(run))
    return slow


_SLOW_STEP = """

_quick_step = Training._step


def _slow_step(self, *arguments):
    from pathlib import Path

    slow = Path({slow!r})
    time.sleep(float(slow.read_text() or 1) if slow.exists() else 0)
    return _quick_step(self, *arguments)


Training._step = _slow_step
"""
