"""Runs to compare: a training that stops early, and when two runs count as the same, by curve and final state."""

from functools import partial
from pathlib import Path

import pytest
import torch

from launcher.checkpoints import checkpoint
from launcher.runs.run_directory import RunDirectory
from launcher.training.loop import Training
from launcher.training.train import StartOptions, train
from recipes.schema import Recipe


def train_until(step: int, monkeypatch: pytest.MonkeyPatch, recipe: Recipe, run: Path, options: StartOptions) -> bool:
    """Train and stop as if asked to after so many finished steps; return whether the schedule is finished."""
    once = Training._step
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", lambda self, now, *rest: once(self, now, *rest) or now == step - 1)
        return train(recipe, run, options)


def losses(run: Path) -> list[float]:
    """The loss of every step."""
    return [event["loss"] for event in RunDirectory(run).metrics.events() if event["event"] == "step"]


def inputs(run: Path) -> list[str]:
    """The digest of the inputs of every step."""
    return [event["inputs"] for event in RunDirectory(run).metrics.events() if event["event"] == "step"]


def assert_same_curve(run: Path, reference: Path, steps: int) -> None:
    """The same inputs, and losses within 1e-5, relative, at each of so many steps."""
    assert inputs(run) == inputs(reference)
    ours, expected = losses(run), losses(reference)
    assert len(ours) == len(expected) == steps
    assert ours == pytest.approx(expected, rel=1e-5)


def assert_same_state(run: Path, reference: Path) -> None:
    """Final weights and EMA within 1e-4; moments within a thousandth of the tensor's largest element; scalars equal."""
    ours, expected = (checkpoint.latest_valid(folder / "checkpoints") for folder in (run, reference))
    assert (ours.step, ours.scalars, ours.metadata) == (expected.step, expected.scalars, expected.metadata)
    ours, expected = ours.reader(), expected.reader()
    assert ours.kinds == expected.kinds >= {"weights", "ema"}
    for kind in expected.kinds:
        theirs = expected.tensors(kind)
        assert ours.tensors(kind).keys() == theirs.keys()
        for name, value in theirs.items():
            absolute = 1e-4 if kind in ("weights", "ema") else 1e-3 * value.abs().max().item()
            torch.testing.assert_close(
                ours.tensor(kind, name), value, rtol=1e-4, atol=absolute, msg=partial("{}/{}: {}".format, kind, name)
            )
