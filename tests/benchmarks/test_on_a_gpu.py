"""The measurement on a GPU works when there is one: stages, their rows, and what happens to one that fails."""

import os
import signal
import subprocess
import threading
import time
from pathlib import Path

import pytest

from tests.benchmarks import on_a_gpu
from tests.benchmarks.on_a_gpu import Stage
from tests.benchmarks.rows import read_rows

ROOT = Path(__file__).parents[2]


def measure(folder: Path, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        on_a_gpu.main(["--folder", str(folder), *arguments])
    return ended.value.code


def test_a_stage_that_takes_too_long_does_not_stop_the_next_and_is_tried_again(tmp_path, monkeypatch, capsys):
    def stages(folder, small, data):
        for name, code in (("slow", "import time; time.sleep(60)"), ("quick", "pass")):
            yield Stage(name, 1, [["timeit", "-n1", "-r1", code]], rows=False)
        yield Stage("without data", 1, [["timeit"]], rows=False, needs=tmp_path / "shards")

    monkeypatch.setattr(on_a_gpu, "stages", stages)
    assert measure(tmp_path) == 1
    assert "slow: failed (stopped after 1 s)" in (printed := capsys.readouterr().out) and "quick: done" in printed
    assert "without data: not started, there is no" in printed
    assert measure(tmp_path) == 1
    assert "slow: failed" in (printed := capsys.readouterr().out) and "quick" not in printed
    assert measure(tmp_path, "--only", "quick", "--minutes", "0.01") == 0
    assert "quick: not started, it may take 1 s" in capsys.readouterr().out


@pytest.fixture
def grandchild(tmp_path, monkeypatch):
    """A stage whose command starts a process and ignores SIGTERM; the file that will hold the process's id."""
    file, ready = tmp_path / "grandchild", tmp_path / "ready"
    code = (
        "import signal, subprocess, time; from pathlib import Path; signal.signal(signal.SIGTERM, signal.SIG_IGN); "
        f"Path({str(file)!r}).write_text(str(subprocess.Popen(['sleep', '600']).pid)); "
        f"Path({str(ready)!r}).touch(); time.sleep(600)"
    )
    monkeypatch.setattr(on_a_gpu, "_GRACE", 0.2)
    yield Stage("ranks", 10, [["timeit", "-n1", "-r1", code]], rows=False), ready, file
    if is_alive(int(file.read_text())):
        os.kill(int(file.read_text()), signal.SIGKILL)


def is_alive(process: int) -> bool:
    """Return whether a process runs; one that has ended may still wait for its parent."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(process)], capture_output=True, text=True).stdout
    return bool(state.strip()) and not state.startswith("Z")


def wait_until(condition) -> None:
    ends = time.monotonic() + 60
    while not condition() and time.monotonic() < ends:
        time.sleep(0.02)


@pytest.mark.slow
def test_nothing_that_a_stage_started_outlives_its_time_limit(grandchild, tmp_path):
    stage, _, file = grandchild
    assert on_a_gpu.run(stage, tmp_path) is False
    wait_until(lambda: not is_alive(int(file.read_text())))
    assert not is_alive(int(file.read_text()))


def test_nothing_that_a_stage_started_outlives_ctrl_c(grandchild, tmp_path):
    stage, ready, file = grandchild

    def interrupt() -> None:
        wait_until(ready.exists)
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        on_a_gpu.run(stage, tmp_path)
    wait_until(lambda: not is_alive(int(file.read_text())))
    assert not is_alive(int(file.read_text()))


@pytest.mark.slow
def test_stages_run_with_the_stand_in_for_cuda_and_fill_the_tables(tmp_path, monkeypatch, capsys):
    """The shortest ones; `test_gpu_step` runs the contenders, and tests/cuda_stand_in the trainings."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests" / "cuda_stand_in")]))
    monkeypatch.setenv("STAND_IN_GPUS", "1")
    code = measure(tmp_path, "--small", "--only", "waits", "depthwise", "memory")
    assert code == 0, [file.read_text()[-2000:] for file in tmp_path.glob("*.txt")]
    on_a_gpu.main(["--folder", str(tmp_path), "--tables"])
    found = capsys.readouterr().out
    waits = {(row["in"], row["line"]): row["waits"] for row in read_rows(tmp_path / "waits.jsonl")}
    assert waits["a training step", "all"] == 1, "only the loss is read, after the update has been queued"
    assert waits["a batch of an evaluation", "all"] < 1, "nothing is read before the end of the evaluation"
    assert "| channels | side | format | ms | bandwidth, GB/s |" in found and "| 768 | 7 | NHWC |" in found
    assert "| convnext_tiny_in1k | 64 |" in found and "steps-tiny: not measured" in found
