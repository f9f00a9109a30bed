"""`ema.warmup` is timm's, `optimizer.weight_decay_end` is upstream's, and a resumed run continues both bit for bit."""

import math

import pytest
import torch
from timm.utils import ModelEmaV3
from torch import nn

from launcher.checkpoints import checkpoint
from launcher.training.stop_request import StopRequest
from launcher.training.train import StartOptions, train
from recipes.errors import UserError
from recipes.load import load
from recipes.schedule import StepSchedule

KEYS = ["ema.warmup=true", "ema.decay=0.9", "optimizer.weight_decay_end=0.3"]


def test_the_warm_up_of_the_ema_has_timms_decays():
    ema = load("demo", ["ema.warmup=true", "ema.decay=0.999"]).ema
    theirs = ModelEmaV3(nn.Linear(1, 1), decay=0.999, use_warmup=True)
    numbers = [*range(1, 300), 10**5, 10**7]
    assert [ema.decay_of_update(number) for number in numbers] == pytest.approx(
        [theirs.get_decay(number) for number in numbers], rel=1e-12
    )


def test_weight_decay_follows_the_cosine_of_upstream():
    """`cosine_scheduler(weight_decay, weight_decay_end, epochs, steps)` of ConvNeXt's utils.py, without warm-up."""
    recipe = load("demo", ["optimizer.weight_decay=0.05", "optimizer.weight_decay_end=0.3"])
    schedule = StepSchedule(recipe, 1438)
    total = schedule.total_steps
    expected = [0.3 + 0.5 * (0.05 - 0.3) * (1 + math.cos(math.pi * step / total)) for step in range(total)]
    assert [schedule.weight_decay(step) for step in range(total)] == expected
    assert StepSchedule(load("demo"), 1438).weight_decay(0) is None


def test_old_recipes_keep_their_identity():
    trajectory = load("demo").trajectory()
    assert "warmup" not in trajectory["ema"] and "weight_decay_end" not in trajectory["optimizer"]
    with pytest.raises(UserError, match=r"set optimizer\.weight_decay too"):
        load("demo", ["optimizer.weight_decay=0", "optimizer.weight_decay_end=0.3"])


def final_state(run) -> dict[str, torch.Tensor]:
    saved = checkpoint.latest_valid(run / "checkpoints").reader()
    return {f"{kind}/{name}": value for kind in saved.kinds for name, value in saved.tensors(kind).items()}


def test_training_uses_both_and_resumes_with_the_same_bits(small_recipe, tmp_path, monkeypatch):
    recipe = small_recipe(*KEYS, "schedule.epochs=1", "schedule.warmup_epochs=0", "batch.global=256")
    options, used = StartOptions(micro_batch=128, workers=0), []

    from launcher.engines.data_parallel import DataParallel

    apply = DataParallel.apply_gradient

    def watched(self, lr):
        used.append([(group["weight_decay"], group["ema_decay"]) for group in self.optimizer.param_groups])
        return apply(self, lr)

    monkeypatch.setattr(DataParallel, "apply_gradient", watched)
    assert train(recipe, tmp_path / "undisturbed", options)
    schedule = StepSchedule(recipe, 1438)
    assert len(used) == schedule.total_steps == 5
    for step, groups in enumerate(used):
        assert {decay for decay, _ in groups} == {0.0, schedule.weight_decay(step)}  # 1-d parameters have none
        assert {decay for _, decay in groups} == {recipe.ema.decay_of_update(step + 1)}
    monkeypatch.setattr(StopRequest, "wanted", property(lambda self: True, lambda self, value: None), raising=False)
    while not train(recipe, tmp_path / "interrupted", options):
        pass
    assert used[5:] == used[:5]
    ours, expected = final_state(tmp_path / "interrupted"), final_state(tmp_path / "undisturbed")
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], value) for name, value in expected.items())
