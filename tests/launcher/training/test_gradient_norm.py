"""The norm of the gradient of the global batch is in the record of every step, and measuring it changes nothing."""

import pytest
import torch
from torch import nn
from torch.nn.utils import clip_grad_norm_

from data.batches import MicroBatches
from data.on_device import DevicePreprocessor
from data.reading.shards import ShardSet
from launcher.runs.run_directory import RunDirectory
from launcher.training.stop_request import StopRequest
from launcher.training.train import StartOptions, train
from models.loss import image_losses
from models.prepared import prepare_model
from recipes.schema import Recipe
from tests.launcher.process_group import Group, train_until

STEPS = 3
CHANGES = ["batch.global=32", "batch.slices=4", "schedule.warmup_epochs=0", "optimizer.name=sgd", "optimizer.lr=0.05"]


def gradient_norms(run) -> list[float]:
    return [event["gradient_norm"] for event in RunDirectory(run).metrics.events() if event["event"] == "step"]


def norms_by_hand(recipe: Recipe) -> list[float]:
    """The norms of plain SGD with clipping on whole global batches, without any engine."""
    split = ShardSet.open(recipe.data.path).split("train")
    batches = MicroBatches(split, recipe, first_position=0, micro_batch=recipe.batch.global_)
    model, found = prepare_model(recipe, 10), []
    optimizer = torch.optim.SGD(model.module.parameters(), lr=recipe.optimizer.lr)
    for step in range(STEPS):
        batch = batches[step, 0]
        model.drop_path.draw(step, batch.positions)
        logits = model.module.train()(DevicePreprocessor(recipe, torch.device("cpu")).images(batch))
        labels = (batch.labels, batch.partner_labels, batch.lam)
        losses = image_losses(logits, *labels, batch.weights, recipe.loss)
        optimizer.zero_grad()
        losses.mean().backward()
        found.append(clip_grad_norm_(model.module.parameters(), recipe.optimizer.clip_grad).item())
        optimizer.step()
    return found


@pytest.fixture
def recipe(small_recipe):
    changes = ("optimizer.momentum=0", "optimizer.weight_decay=0", "schedule.shape=constant", "optimizer.clip_grad=0.5")
    return small_recipe(*CHANGES, *changes)


@pytest.mark.parametrize("world_size", [1, 2])
def test_it_is_that_of_the_global_batch_before_clipping_at_any_cut(recipe, tmp_path, world_size):
    Group(world_size, recipe, tmp_path / "run", train_until, step=STEPS, micro_batch=8).finish()
    expected = norms_by_hand(recipe)
    assert min(expected) > recipe.optimizer.clip_grad  # so a clipped norm would be noticed
    assert gradient_norms(tmp_path / "run") == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_zero_reports_the_norm_of_ddp(small_recipe, tmp_path, zero):
    for stage in (0, zero):
        recipe = small_recipe(*CHANGES, "optimizer.clip_grad=0.5", f"engine.zero={stage}")
        Group(2, recipe, tmp_path / str(stage), train_until, step=STEPS, micro_batch=8).finish()
    assert gradient_norms(tmp_path / str(zero)) == pytest.approx(gradient_norms(tmp_path / "0"), rel=1e-4)


def test_the_gradient_stays_as_it_is_without_clipping(small_recipe, tmp_path, monkeypatch):
    """The update gets exactly the accumulated gradient, so the trajectory is that of a run without the measurement."""
    from launcher.engines.data_parallel import DataParallel

    apply, seen = DataParallel.apply_gradient, []

    def checked(self, lr):
        before = {name: parameter.grad.clone() for parameter, name in self.names.items()}

        def compare(optimizer, *_):
            assert all(torch.equal(parameter.grad, before[name]) for parameter, name in self.names.items())
            seen.append(nn.utils.get_total_norm(before.values()).item())

        hook = self.optimizer.optimizer.register_step_pre_hook(compare)
        applied = apply(self, lr)
        hook.remove()
        return applied

    monkeypatch.setattr(DataParallel, "apply_gradient", checked)
    recipe = small_recipe(*CHANGES, "schedule.epochs=1", "batch.global=512")
    assert train(recipe, tmp_path / "run", StartOptions(micro_batch=128, workers=0))
    assert gradient_norms(tmp_path / "run") == seen and len(seen) == 2


def test_a_gradient_that_overflowed_has_no_norm(small_recipe, tmp_path, monkeypatch):
    from launcher.engines.data_parallel import DataParallel

    backward = DataParallel.backward
    monkeypatch.setattr(DataParallel, "backward", lambda self, loss: backward(self, loss * float("inf")))
    monkeypatch.setattr(StopRequest, "wanted", property(lambda self: True, lambda self, value: None), raising=False)
    assert not train(small_recipe(*CHANGES), tmp_path / "run", StartOptions(micro_batch=16, workers=0))
    assert gradient_norms(tmp_path / "run") == [None]
