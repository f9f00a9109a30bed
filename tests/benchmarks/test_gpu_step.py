"""The benchmark for a GPU runs at a small size on a CPU, so that it works when there is a GPU."""

import pytest

from tests.benchmarks import gpu_step


@pytest.mark.slow
def test_every_contender_takes_steps():
    rows = gpu_step.main(["--small", "--seconds", "0.1"])
    found = {row["contender"] for row in rows if row["model"] == "test_convnext"}
    assert found == {
        "ours, DDP",
        "bare loop",
        "timm's script",
        "ours, ZeRO-1",
        "ours, DDP, no EMA",
        "ours, DDP, real loader",
        "ours, DDP, again",
    }
    assert {row["model"] for row in rows} == {"test_convnext", "test_resnet"}
    assert all(row["images_per_second"] > 0 and row["from"] <= row["images_per_second"] <= row["to"] for row in rows)
