"""A model with dropout has one trajectory too: the same curve at any cut, the same bits after any interruption."""

from pathlib import Path

import pytest
import timm
from timm.models import register_model

from launcher.training.stop_request import StopRequest
from launcher.training.train import StartOptions, train
from models.prepared import prepare_model
from models.stochastic_depth import KeyedDropout
from tests.launcher.comparison import assert_same_curve, assert_same_state, losses

STEPS = 22


@register_model
def dropping_vit(pretrained: bool = False, **options):
    """timm's test_vit with dropout after the embedding, in attention and in every MLP.

    It has no bias in attention. The softmax cancels a bias of the keys, so its gradient is rounding noise alone, and
    AdamW scales that noise up to whole steps that differ from cut to cut.
    """
    rates = {"pos_drop_rate": 0.2, "proj_drop_rate": 0.2, "attn_drop_rate": 0.2, "drop_rate": 0.2}
    return timm.create_model("test_vit", **{**options, **rates, "qkv_bias": False})


@pytest.fixture
def recipe(small_recipe):
    return small_recipe(
        "model.name=dropping_vit", "model.layer_scale=null", "schedule.epochs=1", "schedule.warmup_epochs=0"
    )


@pytest.fixture
def reference(recipe, tmp_path) -> Path:
    assert train(recipe, tmp_path / "reference", StartOptions(micro_batch=64, workers=0))
    return tmp_path / "reference"


def test_the_model_really_drops(recipe):
    module = prepare_model(recipe, 10).module
    assert sum(isinstance(layer, KeyedDropout) for layer in module.modules()) > 6


@pytest.mark.slow
@pytest.mark.parametrize("micro_batch", [16, 7])
def test_the_curve_does_not_depend_on_the_cut(recipe, reference, tmp_path, micro_batch):
    assert train(recipe, tmp_path / "run", StartOptions(micro_batch=micro_batch, workers=0))
    assert_same_curve(tmp_path / "run", reference, STEPS)
    assert_same_state(tmp_path / "run", reference)


@pytest.mark.slow
def test_interrupted_at_every_step_it_has_the_same_losses(recipe, tmp_path, monkeypatch):
    assert train(recipe, tmp_path / "undisturbed", StartOptions(micro_batch=24, workers=0))
    monkeypatch.setattr(StopRequest, "wanted", property(lambda self: True, lambda self, value: None), raising=False)
    for _ in range(STEPS):
        finished = train(recipe, tmp_path / "interrupted", StartOptions(micro_batch=24, workers=0))
    assert finished
    assert losses(tmp_path / "interrupted") == losses(tmp_path / "undisturbed")
