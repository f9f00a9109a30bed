"""The measurement on a GPU works when there is one: stages, their rows, and what happens to one that fails."""

import os
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
