"""The measurement on a GPU works when there is one: stages, their rows, and what happens to one that fails."""

import os
import re
import signal
import subprocess
import threading
import time
import tomllib
from dataclasses import replace
from importlib import metadata
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tests.benchmarks import on_a_gpu
from tests.benchmarks.on_a_gpu import Stage
from tests.benchmarks.rows import LEFT_OUT, is_measured, read_rows, write_row

ROOT = Path(__file__).parents[2]


def measure(folder: Path, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        on_a_gpu.main(["--folder", str(folder), *arguments])
    return ended.value.code


def test_a_stage_that_takes_too_long_does_not_stop_the_next_and_is_tried_again(tmp_path, monkeypatch, capsys):
    def stages(folder, small, data):
        for name, code in (("slow", "import time; time.sleep(60)"), ("quick", "pass")):
            yield Stage(name, 1, [["timeit", "-n1", "-r1", code]])
        yield Stage("without data", 1, [["timeit"]], needs=tmp_path / "shards")

    monkeypatch.setattr(on_a_gpu, "stages", stages)
    assert measure(tmp_path) == 1
    assert "slow: failed (stopped after 1 s)" in (printed := capsys.readouterr().out) and "quick: done" in printed
    assert "without data: not started, there is no" in printed
    assert measure(tmp_path) == 1
    assert "slow: failed" in (printed := capsys.readouterr().out) and "quick" not in printed
    on_a_gpu.main(["--folder", str(tmp_path), "--tables"])
    printed = capsys.readouterr().out
    assert "slow: not measured" in printed and "### quick\n" in printed and "without data: not measured" in printed
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
    yield Stage("ranks", 20, [["timeit", "-n1", "-r1", code]]), ready, file
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
    assert on_a_gpu.run(stage, tmp_path) is None
    wait_until(lambda: not is_alive(int(file.read_text())))
    assert not is_alive(int(file.read_text()))


def test_nothing_that_a_stage_started_outlives_ctrl_c(grandchild, tmp_path):
    stage, ready, file = grandchild

    def interrupt() -> None:
        wait_until(ready.exists)
        os.kill(os.getpid(), signal.SIGINT)

    # A shell lets what it starts in the background ignore Ctrl-C, these tests too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        with pytest.raises(KeyboardInterrupt):
            on_a_gpu.run(replace(stage, seconds=300), tmp_path)
    finally:
        signal.signal(signal.SIGINT, before)
    wait_until(lambda: not is_alive(int(file.read_text())))
    assert not is_alive(int(file.read_text()))


def test_a_stage_that_left_something_out_is_not_done_and_keeps_its_rows(tmp_path, monkeypatch, capsys):
    row = {"figure": 1, "device": "a GPU"}
    write_row(tmp_path / "short.jsonl", row)
    code = f"import os; os._exit({LEFT_OUT})"  # timeit would catch `sys.exit`
    monkeypatch.setattr(on_a_gpu, "stages", lambda *_, **__: [Stage("short", 60, [["timeit", "-n1", "-r1", code]])])
    assert measure(tmp_path) == LEFT_OUT
    assert "short: something was left out" in capsys.readouterr().out
    assert read_rows(tmp_path / "short.jsonl") == [row] and not (tmp_path / "short.done").exists()
    on_a_gpu.main(["--folder", str(tmp_path), "--tables"])
    assert "### short, not finished" in capsys.readouterr().out


def test_a_stage_goes_on_with_the_command_that_failed_and_begins_anew_after_success(tmp_path):
    """Each command writes a line; the second fails once."""
    first = f"open({str(tmp_path / 'first')!r}, 'a').write('x')"
    second = f"open({str(tmp_path / 'second')!r}).read()"
    stage = Stage("two", 60, [["timeit", "-n1", "-r1", first], ["timeit", "-r1", "-n1", second]])
    assert on_a_gpu.run(stage, tmp_path) == 1
    (tmp_path / "second").touch()
    assert on_a_gpu.run(stage, tmp_path) == 0
    assert (tmp_path / "first").read_text() == "x"
    assert on_a_gpu.run(stage, tmp_path) == 0
    assert (tmp_path / "first").read_text() == "xx" and len(read_rows(tmp_path / "two.jsonl")) == 2


def test_half_a_row_costs_only_itself(tmp_path):
    """A process that is killed while it writes leaves one."""
    file = tmp_path / "rows.jsonl"
    write_row(file, {"model": "a", "device": "a GPU"})
    with file.open("a") as output:
        output.write('{"model": "b", "dev')
    assert [row["model"] for row in read_rows(file)] == ["a"]
    write_row(file, {"model": "c", "device": "a GPU"})
    assert [row["model"] for row in read_rows(file)] == ["a", "c"]
    assert is_measured(file, model="a", device="a GPU") and not is_measured(file, model="b", device="a GPU")
    assert not is_measured(file, model="a"), "on another device"


@pytest.mark.slow
def test_stages_run_with_the_stand_in_for_cuda_and_fill_the_tables(tmp_path, monkeypatch, capsys):
    """The shortest ones; `test_gpu_step` runs the contenders, and tests/cuda_stand_in the trainings."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests" / "cuda_stand_in")]))
    monkeypatch.setenv("STAND_IN_GPUS", "1")
    stages = on_a_gpu.stages  # a busy machine takes longer than a GPU
    monkeypatch.setattr(on_a_gpu, "stages", lambda *a, **b: (replace(stage, seconds=300) for stage in stages(*a, **b)))
    code = measure(tmp_path, "--small", "--only", "waits", "depthwise", "memory")
    assert code == 0, [file.read_text()[-2000:] for file in tmp_path.glob("*.txt")]
    on_a_gpu.main(["--folder", str(tmp_path), "--tables"])
    found = capsys.readouterr().out
    waits = {(row["in"], row["line"]): row["waits"] for row in read_rows(tmp_path / "waits.jsonl")}
    assert waits["a training step", "all"] == 1, "only the loss is read, after the update has been queued"
    assert waits["a batch of an evaluation", "all"] < 1, "nothing is read before the end of the evaluation"
    assert "| channels | side | format | ms | bandwidth, GB/s | device |" in found and "| 768 | 7 | NHWC |" in found
    assert "| convnext_tiny_in1k | 64 |" in found and "steps-tiny: not measured" in found


def test_the_wheels_for_a_machine_without_a_network_are_those_that_it_lacks():
    """It has torch, torchvision, timm, accelerate, and what they require."""
    page = (ROOT / "docs" / "measurements" / "gpu-performance.md").read_text()
    listed = re.search(r"--platform manylinux2014_x86_64 \\\n(.*?)\n```", page, re.DOTALL)[1].replace("\\", "").split()
    ours = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    lacking = required(ours) - required(["torch", "torchvision", "timm", "accelerate"])
    assert listed == sorted(lacking - {"deepspeed"}), "deepspeed is built, as the line above the list says"


def required(names: list[str]) -> set[str]:
    """Return the names of packages, and of all that they require on this machine."""
    found, left = set(), [Requirement(name) for name in names]
    seen = set()
    while left:
        requirement = left.pop()
        applies = requirement.marker is None or requirement.marker.evaluate({"extra": ""})
        if not applies or (key := (canonicalize_name(requirement.name), *sorted(requirement.extras))) in seen:
            continue
        seen.add(key)
        found.add(key[0])
        for text in metadata.requires(requirement.name) or []:
            inner = Requirement(text)
            extras = ["", *requirement.extras]
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for extra in extras):
                inner.marker = None
                left.append(inner)
    return found
