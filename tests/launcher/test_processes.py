"""The ranks of `--procs` end together: with their parent, however it dies, and with a rank that is killed."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from launcher.checkpoints.checkpoint import latest_valid
from launcher.runs.run_directory import RunDirectory
from tests.launcher.conftest import start_training

LONG = ["--procs", "2", "schedule.epochs=500", "run.save_every=100000"]


def processes_of(run: Path) -> list[int]:
    """The processes that have this run directory in their command line: parent, ranks and their loader processes."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if str(run) in (process / "cmdline").read_text():
                found.append(int(process.name))
        except OSError:  # it ended meanwhile
            continue
    return found


def parent_of(process: int) -> int:
    return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])


def steps(run: Path) -> list[int]:
    return [event["step"] for event in RunDirectory(run).metrics.events() if event["event"] == "step"]


@pytest.fixture
def training(digits, tmp_path):
    """A training of two ranks with a loader process each, some steps after its start; the test ends it."""
    run = tmp_path / "run"
    process = start_training(digits, run, *LONG, python=sys.executable)
    wait_until(lambda: len(steps(run)) > 3, 240)
    yield process, run
    for left in processes_of(run):
        os.kill(left, signal.SIGKILL)
    process.wait()
    process.stdout.close()


def wait_until(condition, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.05)


@pytest.mark.slow
def test_ranks_and_loaders_end_when_their_parent_is_killed_and_save_before(training):
    process, run = training
    process.kill()
    wait_until(lambda: not processes_of(run), 90)
    assert latest_valid(run / "checkpoints").step == steps(run)[-1]
    assert "stopped and saved at step" in process.communicate()[0]


@pytest.mark.slow
def test_a_killed_rank_is_named_and_the_others_end_without_a_traceback(training):
    process, run = training
    ranks = [found for found in processes_of(run) if parent_of(found) == process.pid]
    environments = {rank: Path(f"/proc/{rank}/environ").read_text().split("\0") for rank in ranks}
    killed = next(rank for rank in ranks if "RANK=1" in environments[rank])
    os.kill(killed, signal.SIGKILL)
    output, _ = process.communicate(timeout=90)
    assert process.returncode == 128 + signal.SIGKILL, output
    assert (
        "error: rank 1 was killed by signal 9 (SIGKILL), most often because the machine or the job ran out of memory"
        in output
    )
    assert "Traceback" not in output
    wait_until(lambda: not processes_of(run), 30)  # its loader process too


def start_two(folder: Path, program: str, before: str = "") -> subprocess.CompletedProcess:
    """Run a program in two ranks, after the parent has run the statements `before`."""
    (folder / "program.py").write_text(program)
    script = (
        f"from launcher.processes import run_processes\n{before}\nraise SystemExit(run_processes('program', [], 2))"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), str(Path.cwd())])}
    environment.pop("OMP_NUM_THREADS", None)
    command = [sys.executable, "-c", script]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)


def test_the_first_failure_decides_the_exit_code(tmp_path):
    """A rank that exits by itself is not said to be killed."""
    done = start_two(tmp_path, "import os, sys; sys.exit(3 if os.environ['RANK'] == '1' else 0)")
    assert done.returncode == 3 and "killed" not in done.stderr, done.stderr


def test_ranks_divide_the_cpus_that_their_parent_may_use(tmp_path):
    """A job that is bound to one CPU of a large machine gives no rank threads for all of them."""
    one_of_128 = "import os; os.cpu_count = lambda: 128; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])"
    done = start_two(tmp_path, "import os; os.write(1, os.environ['OMP_NUM_THREADS'].encode() + b' ')", one_of_128)
    assert done.stdout.split() == ["1", "1"], done.stderr
