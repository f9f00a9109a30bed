"""Every key that 0.2 has added to the input, the loss and the update keeps one trajectory: at any cut, and resumed."""

import pytest

from launcher.training.train import StartOptions, train
from tests.launcher.comparison import assert_same_curve, losses, train_until

STEPS = 5
OPTIONS = [
    "batch.global=256",
    "batch.slices=8",
    "schedule.epochs=1",
    "schedule.warmup_epochs=0",
    "optimizer.name=lamb",
    "optimizer.clip_grad=1",
    "augment.crop=pad",
    "augment.randaugment=null",
    "augment.policy=trivial",
    "augment.repeats=3",
    "mix.mode=elem",
    "loss.kind=bce",
    "loss.target_threshold=0.2",
    "optimizer.lr_at_batch=1024",
    "optimizer.weight_decay_end=0.2",
    "ema.warmup=true",
]


@pytest.mark.slow
def test_a_run_with_every_option_resumes_after_every_step_with_the_same_bits_and_has_one_curve_at_any_cut(
    small_recipe, tmp_path, monkeypatch
):
    recipe, cut = small_recipe(*OPTIONS), StartOptions(micro_batch=64, workers=0)
    assert train(recipe, tmp_path / "whole", cut)
    for step in range(1, STEPS):
        assert not train_until(step, monkeypatch, recipe, tmp_path / "stopped", cut)
    assert train(recipe, tmp_path / "stopped", cut)
    assert losses(tmp_path / "stopped") == losses(tmp_path / "whole")
    assert train(recipe, tmp_path / "cut", StartOptions(micro_batch=43, workers=0))
    assert_same_curve(tmp_path / "cut", tmp_path / "whole", STEPS)
