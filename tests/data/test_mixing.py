"""Pairs are mixed inside slices, with timm's distributions and arithmetic."""

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup, mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch.nn import functional as F

from data.batches import MicroBatch
from data.mixing import SliceMix, partner, slice_mix
from data.on_device import DevicePreprocessor
from models.loss import mixed_cross_entropy
from recipes.load import load


@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_partners_are_mutual_and_never_leave_the_slice(size):
    for position in range(5 * size):
        other = partner(position, size)
        assert partner(other, size) == position
        assert other // size == position // size
        assert abs(other - position) <= 1


def test_half_the_slices_are_cut_and_lambda_has_the_recipes_distribution():
    recipe = load("convnext_tiny_in1k")
    mixes = [slice_mix(recipe, step, number) for step in range(100) for number in range(32)]
    cut = np.array([mix.lam for mix in mixes if mix.box])
    blended = np.array([mix.lam for mix in mixes if not mix.box])
    assert len(cut) / len(mixes) == pytest.approx(0.5, abs=0.05)
    assert blended.mean() == pytest.approx(0.5, abs=0.03)
    assert blended.var() == pytest.approx(0.25 / (2 * 0.8 + 1), rel=0.1)  # Beta(a, a)
    theirs = Mixup(cutmix_alpha=1.0, mixup_alpha=0, num_classes=10)
    np.random.seed(0)
    expected = [_timm_cut_lambda(theirs) for _ in range(3000)]
    assert cut.mean() == pytest.approx(np.mean(expected), abs=0.03)
    assert np.quantile(cut, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(expected, [0.1, 0.5, 0.9]), abs=0.06)


def _timm_cut_lambda(mixup):
    lam, _ = mixup._params_per_batch()
    from timm.data.mixup import cutmix_bbox_and_lam

    return cutmix_bbox_and_lam((1, 3, 224, 224), lam)[1]


def test_lambda_of_a_box_is_the_share_of_pixels_left():
    recipe = load("convnext_tiny_in1k", ["mix.mixup=0", "input.size=64"])
    for number in range(200):
        mix = slice_mix(recipe, 0, number)
        top, bottom, left, right = mix.box
        mask = np.ones((64, 64))
        mask[top:bottom, left:right] = 0
        assert mix.lam == pytest.approx(mask.mean())


@pytest.mark.parametrize(
    "changes, mixed", [(["mix.mixup=0", "mix.cutmix=0"], False), (["mix.probability=0"], False), ([], True)]
)
def test_mixing_can_be_switched_off(changes, mixed):
    recipe = load("convnext_tiny_in1k", changes)
    assert any(slice_mix(recipe, 0, number) != SliceMix(1.0) for number in range(32)) == mixed


@pytest.mark.parametrize("mix", [SliceMix(0.3), SliceMix(1 - 12 / 64, (2, 5, 1, 5))])
def test_pixels_and_loss_are_timms(mix):
    """For the same pairs, timm's mixing arithmetic, soft targets and loss give the same numbers."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels, logits = torch.tensor([3, 1, 0, 9]), torch.randn(4, 10, generator=generator)
    pairs = torch.tensor([1, 0, 3, 2])
    batch = MicroBatch(
        step=0,
        positions=torch.arange(4),
        samples=torch.arange(4),
        weights=torch.ones(4),
        pixels=pixels,
        erased=[(0, 0, 0, 0)] * 4,
        noise_keys=[0] * 4,
        labels=labels,
        partners=pairs,
        partner_labels=labels[pairs],
        lam=torch.full((4,), mix.lam),
        mixes=[(0, 4, mix)],
    )
    preprocessor = DevicePreprocessor(load("demo", ["input.size=16"]), torch.device("cpu"))
    plain = preprocessor.normalised(pixels)
    expected = plain.clone()
    if mix.box:
        top, bottom, left, right = mix.box
        expected[:, :, top:bottom, left:right] = plain[pairs][:, :, top:bottom, left:right]
    else:
        expected = plain * mix.lam + plain[pairs] * (1 - mix.lam)
    assert torch.equal(preprocessor.images(batch), expected)

    off, on = 0.1 / 10, 1 - 0.1 + 0.1 / 10
    target = F.one_hot(labels, 10) * (on - off) + off
    target = target * mix.lam + target[pairs] * (1 - mix.lam)
    losses = mixed_cross_entropy(logits, batch.labels, batch.partner_labels, batch.lam, batch.weights, smoothing=0.1)
    torch.testing.assert_close(losses.mean(), SoftTargetCrossEntropy()(logits, target))
    # timm pairs the first with the last: with the labels in that order, its targets are the same numbers
    theirs = mixup_target(labels[[0, 2, 3, 1]], 10, mix.lam, 0.1)
    ours = (F.one_hot(labels, 10) * (on - off) + off)[[0, 2, 3, 1]]
    torch.testing.assert_close(theirs, ours * mix.lam + ours.flip(0) * (1 - mix.lam))
