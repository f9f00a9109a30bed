"""A head on a frozen backbone trains on features that are computed once, where nothing is augmented."""

from pathlib import Path

import numpy as np
import pytest
import torch

from data.batches import MicroBatches
from launcher.evaluation.evaluate import EvaluateOptions, evaluate
from launcher.runs.run_directory import RunDirectory
from launcher.training.head_features import trains_on_features
from launcher.training.train import StartOptions, train
from models.prepared import prepare_model
from tests.launcher.comparison import assert_same_curve, assert_same_state, inputs, losses, train_until
from tests.launcher.process_group import train_group
from tests.launcher.training.test_unreadable import damaged  # noqa: F401

STEPS = 11
PLAIN = (
    "model.train=head",
    "model.layer_scale=null",
    "model.drop_path=0",
    "augment.crop=center",
    "augment.randaugment=null",
    "augment.color_jitter=null",
    "augment.erasing=0",
    "mix.mixup=0",
    "mix.cutmix=0",
    "schedule.epochs=1",
    "schedule.warmup_epochs=0",
    "batch.global=128",
    "run.evaluate_every=1",
)


@pytest.fixture
def recipe(small_recipe):
    return lambda *changes: small_recipe(*PLAIN, *changes)


def run_of(recipe, folder: Path, micro_batch: int = 128) -> Path:
    assert train(recipe, folder, StartOptions(workers=0, micro_batch=micro_batch))
    return folder


def accuracies(run: Path) -> list[float]:
    return [event["ema_top1"] for event in RunDirectory(run).metrics.events() if event["event"] == "evaluation"]


def features(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in sorted(run.glob("features/*/*.npy"))}


@pytest.fixture
def whole(recipe, tmp_path) -> Path:
    return run_of(recipe(), tmp_path / "whole")


@pytest.mark.parametrize("model", ["test_convnext", "test_resnet"])
def test_it_is_the_run_that_sees_images(recipe, tmp_path, monkeypatch, model):
    """The same inputs by their digest, and losses and accuracies within rounding."""
    ours = run_of(recipe(f"model.name={model}"), tmp_path / "features", micro_batch=64)
    monkeypatch.setattr("launcher.training.train.trains_on_features", lambda *_: False)
    expected = run_of(recipe(f"model.name={model}"), tmp_path / "images", micro_batch=64)
    assert features(ours).keys() == {f"features/{file}.npy" for file in ("train/000000", "train/000001", "val/000000")}
    assert not features(expected)
    assert_same_curve(ours, expected, STEPS)
    assert_same_state(ours, expected)
    assert accuracies(ours) == pytest.approx(accuracies(expected), abs=0.003)


def test_no_step_reads_an_image(recipe, whole, tmp_path, monkeypatch):
    def unexpected(*_):
        raise AssertionError("an image was read")

    run = tmp_path / "run"
    assert not train_until(1, monkeypatch, recipe(), run, StartOptions(workers=0, micro_batch=128))
    monkeypatch.setattr(MicroBatches, "_image", unexpected)
    run_of(recipe(), run)
    assert losses(run) == losses(whole)


def test_features_and_curve_do_not_depend_on_the_cut(recipe, whole, tmp_path):
    parts = run_of(recipe(), tmp_path / "parts", micro_batch=32)
    assert features(parts) == features(whole)
    assert_same_curve(parts, whole, STEPS)
    assert_same_state(parts, whole)


def test_killed_while_features_are_computed_it_goes_on_where_it_was(recipe, whole, tmp_path, monkeypatch):
    computed = []

    def killed(self, pixels):
        if len(computed) == 17:  # in the second part
            raise KeyboardInterrupt
        computed.append(len(pixels))
        return once(self, pixels)

    from launcher.evaluation.feature_extractor import FeatureExtractor

    once = FeatureExtractor.__call__
    with monkeypatch.context() as patch:
        patch.setattr(FeatureExtractor, "__call__", killed)
        with pytest.raises(KeyboardInterrupt):
            run_of(recipe(), tmp_path / "run")
    assert list(features(tmp_path / "run")) == ["features/train/000000.npy"]
    first = (tmp_path / "run/features/train/000000.npy").stat().st_mtime_ns
    run_of(recipe(), tmp_path / "run")
    assert (tmp_path / "run/features/train/000000.npy").stat().st_mtime_ns == first
    assert features(tmp_path / "run") == features(whole) and losses(tmp_path / "run") == losses(whole)


@pytest.mark.slow
def test_three_ranks_share_the_work_and_resume_a_run_of_one(recipe, whole, tmp_path, monkeypatch):
    three = tmp_path / "three"
    train_group(3, recipe(), three, micro_batch=32)
    assert features(three) == features(whole)
    assert_same_curve(three, whole, STEPS)
    assert_same_state(three, whole)
    assert not train_until(7, monkeypatch, recipe(), tmp_path / "mixed", StartOptions(workers=0, micro_batch=128))
    train_group(3, recipe(), tmp_path / "mixed", micro_batch=32)
    assert_same_curve(tmp_path / "mixed", whole, STEPS)


@pytest.mark.slow
def test_under_zero_it_is_the_same_run(recipe, whole, tmp_path):
    train_group(2, recipe("engine.zero=2"), tmp_path / "zero", micro_batch=32)
    assert features(tmp_path / "zero") == features(whole)
    assert_same_curve(tmp_path / "zero", whole, STEPS)
    assert_same_state(tmp_path / "zero", whole)


def test_under_bf16_it_is_as_close_as_rounding_allows(recipe, tmp_path, monkeypatch):
    bf16 = recipe("engine.precision=bf16")
    ours = run_of(bf16, tmp_path / "features")
    monkeypatch.setattr("launcher.training.train.trains_on_features", lambda *_: False)
    expected = run_of(bf16, tmp_path / "images")
    assert inputs(ours) == inputs(expected)
    assert losses(ours) == pytest.approx(losses(expected), rel=5e-3)


def test_the_evaluation_is_that_of_the_command(whole):
    results = evaluate(whole, options=EvaluateOptions(workers=0))
    assert results[-1].accuracy.top1 == pytest.approx(accuracies(whole)[-1], abs=0.003)


def test_replay_uses_them(recipe, tmp_path, bigbatch):
    run = run_of(recipe(), tmp_path / "run")
    before = features(run)
    code, out, err = bigbatch("replay", run, "--step", 3, "--steps", 99, "--workers", 0)
    assert code == 0 and "bit for bit" in out, out + err
    assert features(run) == before


@pytest.mark.parametrize(
    "change",
    [
        "model.train=all",
        "model.train=last:1",
        "augment.crop=random_resized",
        "augment.flip=0.5",
        "augment.erasing=0.1",
        "mix.mixup=0.2",
        "engine.zero=3",
    ],
)
def test_what_is_augmented_or_trains_a_backbone_sees_images(recipe, change):
    chosen = recipe("engine.zero=0", change)
    assert not trains_on_features(chosen, prepare_model(chosen, 10))


@pytest.mark.parametrize("name, size, can", [("test_vit", 160, True), ("levit_128s", 224, False)])
def test_a_model_whose_output_is_not_that_of_one_linear_layer_sees_images(recipe, name, size, can):
    chosen = recipe(f"model.name={name}", "engine.zero=0", f"input.size={size}", "model.init_std=null")
    model = prepare_model(chosen, 10)
    assert trains_on_features(chosen, model) == can
    if can:
        model.module.eval()
        head, images = model.module.get_classifier(), torch.randn(2, 3, size, size)
        seen = []
        head.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
        logits = model.module(images)
        assert torch.equal(model.module(seen[0]), logits)


def test_center_is_the_view_of_an_evaluation(recipe, digits):
    from data.batches import EvalBatches
    from data.reading.shards import ShardSet

    split = ShardSet.open(digits).split("train")
    pixels, _ = EvalBatches(split, recipe(), 0, 128, 128)[0]
    batch = MicroBatches(split, recipe(), 0, 128)[(0, 0)]
    chosen = batch.samples < 128
    assert chosen.any() and torch.equal(batch.pixels[chosen], pixels[batch.samples[chosen]])
    assert not np.any(batch.erased)


def test_an_unreadable_image_is_replaced_by_the_same_image_as_ever(recipe, damaged, tmp_path, monkeypatch, capsys):  # noqa: F811
    chosen = recipe(f"data.path={damaged}", "run.unreadable=0.1")
    ours = run_of(chosen, tmp_path / "features")
    assert "unreadable image, replaced by another one" in capsys.readouterr().err
    monkeypatch.setattr("launcher.training.train.trains_on_features", lambda *_: False)
    expected = run_of(chosen, tmp_path / "images")
    assert_same_curve(ours, expected, STEPS)
    replaced = [
        sum(event["replaced"] for event in RunDirectory(run).metrics.events() if event["event"] == "step")
        for run in (ours, expected)
    ]
    # Where a replacement is unreadable too, the run that sees images counts both.
    assert 30 < replaced[0] <= replaced[1] < 90
