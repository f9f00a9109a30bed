"""A gradient that overflows in fp16 is no update: weights, EMA, BatchNorm's EMA, Adam's step and `updates` stay."""

from pathlib import Path

import pytest
import torch

from launcher.checkpoints import checkpoint
from recipes.load import load
from recipes.schema import Recipe
from tests.launcher.comparison import losses
from tests.launcher.conftest import SMALL
from tests.launcher.process_group import Group, train_until

OVERFLOWS = (0, 1, 4, 6)  # steps; the first ones before the optimizer has any state
STEPS = 9
BATCH_NORM = [
    "model.name=test_resnet",
    "model.layer_scale=null",
    "model.drop_path=0",
    "batch.global=32",
    "batch.slices=4",
]
OPTIMIZERS = {"adamw": ["optimizer.lr=1e-3"], "sgd": ["optimizer.name=sgd", "optimizer.lr=0.01"]}


def train_with_overflows(recipe: Recipe, run: Path, step: int, scaled: bool) -> None:
    """Train on each rank; with fp16's GradScaler and infinite gradients in some steps, or by leaving out their updates.

    The forward pass is in float32, because this is a CPU. The loss scale is a power of two, so it rounds nothing.
    """
    import launcher.training.train as module
    from launcher.engines.data_parallel import DataParallel
    from launcher.training.loop import Training

    make, backward, apply, do_step = (
        module.make_accelerator,
        DataParallel.backward,
        DataParallel.apply_gradient,
        Training._step,
    )
    current = 0

    def with_scaler(*arguments, **options):
        accelerator = make(*arguments, **options)
        accelerator.scaler = torch.amp.GradScaler("cpu", growth_interval=2)
        return accelerator

    def overflowing(self, loss):
        backward(self, loss * float("inf") if current in OVERFLOWS else loss)

    def checked(self, lr):
        applied = apply(self, lr)
        assert applied == (current not in OVERFLOWS)
        steps = {int(state["step"]) for state in self.optimizer.state.values() if "step" in state}
        assert steps <= {self.updates + applied}
        return applied

    def left_out(self, lr):
        if current not in OVERFLOWS:
            return apply(self, lr)
        self.zero_grad()
        return False

    def counted(self, number, *arguments):
        nonlocal current
        current = number
        return do_step(self, number, *arguments)

    Training._step = counted
    if scaled:
        module.make_accelerator, DataParallel.backward, DataParallel.apply_gradient = with_scaler, overflowing, checked
    else:
        DataParallel.apply_gradient = left_out
    train_until(recipe, run, step=step, micro_batch=16)


def tensors(run: Path) -> dict[str, torch.Tensor]:
    saved = checkpoint.latest_valid(run / "checkpoints").reader()
    return {f"{kind}/{name}": value for kind in saved.kinds for name, value in saved.tensors(kind).items()}


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("world_size", [1, 2])
def test_a_run_with_overflows_is_the_run_without_those_updates_also_when_resumed(
    digits, tmp_path, optimizer, world_size
):
    recipe = load("demo", [*SMALL, f"data.path={digits}", *BATCH_NORM, *OPTIMIZERS[optimizer], "ema.decay=0.9"])
    for name, scaled, stops in (
        ("left out", False, [STEPS]),
        ("at once", True, [STEPS]),
        ("resumed", True, [1, 5, STEPS]),
    ):
        for step in stops:
            Group(world_size, recipe, tmp_path / name, train_with_overflows, step=step, scaled=scaled).finish()
    expected, scalars = tensors(tmp_path / "left out"), []
    assert {name.split("/")[0] for name in expected} >= {"weights", "ema", "buffers", "buffers_ema"}
    for name in ("at once", "resumed"):
        assert losses(tmp_path / name) == losses(tmp_path / "left out")
        found = tensors(tmp_path / name)
        assert found.keys() == expected.keys()
        assert not [label for label, value in expected.items() if not torch.equal(found[label], value)]
        scalars.append(checkpoint.latest_valid(tmp_path / name / "checkpoints").scalars)
    assert scalars[0] == scalars[1]
    # Halved four times; doubled after steps 2 and 3, and after 7 and 8.
    assert scalars[0] == {"updates": STEPS - len(OVERFLOWS), "loss_scale": 2.0**14, "good_steps": 0}
