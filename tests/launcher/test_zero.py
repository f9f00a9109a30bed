"""ZeRO at every stage is the same run as plain data parallelism: curve, weights, moments, average, evaluation."""

from pathlib import Path

import pytest
import torch

from launcher import checkpoint
from launcher.run_directory import RunDirectory
from tests.launcher.process_group import train_group

STEPS = ["schedule.epochs=2", "schedule.warmup_epochs=1", "batch.global=96", "batch.slices=6", "run.evaluate_every=1"]  # 14 an epoch
KINDS = ("weights", "ema", "exp_avg", "exp_avg_sq")


def losses(run: Path) -> list[float]:
    return [event["loss"] for event in RunDirectory(run).metrics() if event["event"] == "step"]


def evaluations(run: Path) -> list[tuple]:
    return [(event["images"], event["top1"], event["ema_top1"]) for event in RunDirectory(run).metrics() if event["event"] == "evaluation"]


def assert_same_run(run: Path, reference: Path) -> None:
    assert losses(run) == pytest.approx(losses(reference), rel=1e-5)
    assert evaluations(run) == evaluations(reference)
    ours, expected = (checkpoint.newest_whole(folder / "checkpoints") for folder in (run, reference))
    assert ours.step == expected.step and ours.numbers == expected.numbers
    ours, expected = ours.reader(), expected.reader()
    assert ours.kinds == expected.kinds
    for kind in KINDS:
        theirs = expected.tensors(kind)
        assert ours.tensors(kind).keys() == theirs.keys()
        for name, value in theirs.items():
            torch.testing.assert_close(ours.tensor(kind, name), value, rtol=1e-4, atol=1e-5, msg=f"{kind}/{name}")


@pytest.fixture(scope="module")
def train_once(digits, tmp_path_factory):
    """Train a variant of the small recipe once and return its run directory."""
    from recipes.load import load
    from tests.launcher.conftest import SMALL

    finished = {}

    def train(world_size: int, *changes: str, micro_batch: int = 12) -> Path:
        key = (world_size, changes, micro_batch)
        if key not in finished:
            run = tmp_path_factory.mktemp("runs") / "run"
            train_group(world_size, load("demo", [*SMALL, *STEPS, f"data.path={digits}", *changes]), run, micro_batch=micro_batch)
            finished[key] = run
        return finished[key]

    return train


@pytest.mark.parametrize("offload", ["none", "cpu"])
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_every_stage_is_the_same_run_as_plain_data_parallelism(train_once, zero, offload):
    """2 processes, 4 accumulation steps, float32, 28 steps, every ingredient of the recipe on."""
    assert_same_run(train_once(2, f"engine.zero={zero}", f"engine.offload={offload}"), train_once(2))
