"""A run that trains a part of a model is as exact, resumable and portable as any other."""

import shutil
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from launcher.checkpoints import checkpoint
from launcher.cut import cut_batch
from launcher.evaluation.saved_weights import run_weights
from launcher.planning.memory_model import predict_states
from launcher.planning.model_profile import parameter_sizes
from launcher.runs.run_directory import RunDirectory
from launcher.training.train import StartOptions, train
from models.build import build
from tests.launcher.comparison import assert_same_curve, assert_same_state, losses
from tests.launcher.process_group import Group, train_group, train_until

STEPS = 11
PARTS = {"head": "test_convnext", "last:1": "test_resnet"}


@pytest.fixture
def recipe(small_recipe):
    def make(part: str, *changes: str):
        few = ("schedule.epochs=1", "schedule.warmup_epochs=0", "batch.global=128", "model.layer_scale=null")
        return small_recipe(f"model.name={PARTS[part]}", f"model.train={part}", *few, *changes)

    return make


def run_of(recipe, folder: Path, **options) -> Path:
    assert train(recipe, folder, StartOptions(workers=0, **options))
    return folder


@pytest.mark.parametrize("part", PARTS)
def test_frozen_layers_stay_and_the_curve_does_not_depend_on_the_cut(recipe, tmp_path, part):
    chosen = recipe(part)
    whole = run_of(chosen, tmp_path / "whole", micro_batch=128)
    parts = run_of(chosen, tmp_path / "parts", micro_batch=32)
    assert_same_curve(parts, whole, STEPS)
    assert_same_state(parts, whole)
    saved = checkpoint.latest_valid(whole / "checkpoints").reader()
    model = build(chosen, 10)  # the initial weights
    for name, parameter in model.named_parameters():
        assert torch.equal(saved.tensor("weights", name), parameter) != parameter.requires_grad, name
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert saved.tensors("exp_avg").keys() == saved.tensors("ema").keys() == trained
    for ema in (False, True):
        weights = run_weights(RunDirectory(whole), ema=ema).tensors
        timm.create_model(PARTS[part], num_classes=10).load_state_dict(weights, strict=True)


@pytest.mark.slow
def test_with_batch_norm_in_evaluation_mode_the_curve_does_not_depend_on_the_cut(recipe, tmp_path):
    """`model.norm_eval`: any micro-batch, the statistics of the given weights in the result, and a bit-equal resume.

    The network is smooth and its statistics are those of images: an activation beside the kink of a ReLU, or a gradient
    that vanishes and that Adam scales to the size of a step, would make rounding, which each processor does otherwise,
    large enough to see.
    """
    given = timm.create_model("test_efficientnet", num_classes=10)
    with torch.no_grad():
        for _ in range(50):
            given(torch.randn(32, 3, 32, 32))
    save_file(given.state_dict(), tmp_path / "given.safetensors")
    keys = [f"model.weights={tmp_path / 'given.safetensors'}", "model.norm_eval=true", "run.save_every=4"]
    keys += ["model.name=test_efficientnet", "optimizer.lr=1e-3"]
    chosen = recipe("last:1", "model.train=all", *keys)
    whole = run_of(chosen, tmp_path / "whole", micro_batch=128)
    parts = run_of(chosen, tmp_path / "parts", micro_batch=24)
    assert_same_curve(parts, whole, STEPS)
    assert_same_state(parts, whole)
    for ema in (False, True):
        weights = run_weights(RunDirectory(whole), ema=ema).tensors
        for name, value in given.state_dict().items():
            assert torch.equal(weights[name], value) == ("running" in name or "tracked" in name), name
    before = losses(parts)
    shutil.rmtree(checkpoint.checkpoint_path(parts / "checkpoints", STEPS))
    run_of(chosen, parts, micro_batch=24)  # resumes from step 8
    assert losses(parts) == before


@pytest.mark.slow
@pytest.mark.parametrize("part", PARTS)
def test_interrupted_and_resumed_it_has_the_same_bits(recipe, tmp_path, part):
    chosen = recipe(part)
    train_group(1, chosen, tmp_path / "whole", micro_batch=64)
    Group(1, chosen, tmp_path / "resumed", train_until, step=4, micro_batch=64).finish()
    train_group(1, chosen, tmp_path / "resumed", micro_batch=64)
    assert losses(tmp_path / "resumed") == losses(tmp_path / "whole")


@pytest.mark.slow
@pytest.mark.parametrize("zero", [1, 3])
def test_under_zero_and_resumed_by_another_engine_it_is_the_same_run(recipe, tmp_path, zero):
    """Frozen weights are part of the checkpoint under every engine."""
    chosen = recipe("last:1")
    whole = run_of(chosen, tmp_path / "whole", micro_batch=64)
    sharded = chosen.variant(engine={"zero": zero})
    Group(2, sharded, tmp_path / "run", train_until, step=6, micro_batch=32).finish()
    train_group(2, chosen.variant(engine={"zero": 0}), tmp_path / "run", micro_batch=64)
    assert_same_curve(tmp_path / "run", whole, STEPS)
    assert_same_state(tmp_path / "run", whole)
    train_group(2, sharded, tmp_path / "zero", micro_batch=32)
    assert_same_state(tmp_path / "zero", whole)


def test_the_plan_counts_no_gradient_and_no_state_of_frozen_parameters(recipe):
    for zero in (0, 1, 2, 3):
        chosen = recipe("head", f"engine.zero={zero}", "engine.offload=none")
        with torch.device("meta"):
            sizes = parameter_sizes(build(chosen, 10))
        head = 64 * 10 + 10
        assert sizes.trained == head < sizes.total
        memory = predict_states(chosen, sizes, 0, cut_batch(chosen, 2, None, 64))
        assert max(memory.gradients, memory.optimizer / 3, memory.ema) <= 4 * head
        assert memory.parameters >= 4 * sizes.total / (2 if zero == 3 else 1)
