"""Pairs are mixed inside slices, with timm's distributions and arithmetic."""

import numpy as np
import pytest
import torch
from timm.data.mixup import Mixup, mixup_target
from timm.loss import SoftTargetCrossEntropy
from torch.nn import functional as F

from data.batches import MicroBatch
from data.mixing import UNMIXED, Mix, drawn_mix, mixed_alike, partner
from data.on_device import DevicePreprocessor
from models.loss import image_losses, soft_targets
from recipes.load import load
from recipes.sections import LossSettings


@pytest.mark.parametrize("size", [1, 2, 7, 16])
def test_partners_are_mutual_and_never_leave_the_slice(size):
    for position in range(5 * size):
        other = partner(position, size)
        assert partner(other, size) == position
        assert other // size == position // size
        assert abs(other - position) <= 1


def test_half_the_slices_are_cut_and_lambda_has_the_recipes_distribution():
    recipe = load("convnext_tiny_in1k")
    mixes = [drawn_mix(recipe, step, number * 128) for step in range(100) for number in range(32)]
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
        mix = drawn_mix(recipe, 0, number * 128)
        top, bottom, left, right = mix.box
        mask = np.ones((64, 64))
        mask[top:bottom, left:right] = 0
        assert mix.lam == pytest.approx(mask.mean())


@pytest.mark.parametrize(
    "changes, mixed", [(["mix.mixup=0", "mix.cutmix=0"], False), (["mix.probability=0"], False), ([], True)]
)
def test_mixing_can_be_switched_off(changes, mixed):
    recipe = load("convnext_tiny_in1k", changes)
    assert any(drawn_mix(recipe, 0, number * 128) != UNMIXED for number in range(32)) == mixed


@pytest.mark.parametrize("size", [1, 7, 16])
@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
def test_who_shares_a_mix(mode, size):
    """batch: the slice; pair: both partners; elem: nobody. The positions of a mix always form one range."""
    recipe = load("demo", [f"batch.global={4 * size}", "batch.slices=4", f"mix.mode={mode}"])
    for position in range(4 * size):
        alike = mixed_alike(recipe, position)
        slice_start = position // size * size
        expected = {
            "batch": set(range(slice_start, slice_start + size)),
            "pair": {position, partner(position, size)},
            "elem": {position},
        }
        assert set(alike) == expected[mode]
        assert len({drawn_mix(recipe, 3, other) for other in alike}) == 1
    assert (
        len({drawn_mix(recipe, 3, position) for position in range(4 * size)})
        == {
            "batch": 4,
            "pair": 4 * -(-size // 2),
            "elem": 4 * size,
        }[mode]
    )


@pytest.mark.parametrize("mode", ["pair", "elem"])
def test_lambda_of_pairs_and_images_has_timms_distribution(mode):
    settings = ["mix.probability=0.7", "mix.switch=0.3", f"mix.mode={mode}", "batch.global=4096", "batch.slices=2"]
    recipe = load("convnext_tiny_in1k", settings)
    mixes = [drawn_mix(recipe, 0, position) for position in range(0, 4096, 2)]
    np.random.seed(0)
    lam, cut = Mixup(0.8, 1.0, prob=0.7, switch_prob=0.3, mode=mode)._params_per_elem(2048)
    mixed = [mix for mix in mixes if mix != UNMIXED]
    blended = [mix.lam for mix in mixed if not mix.box]
    theirs = lam[(lam < 1) & ~cut]
    assert len(mixed) / 2048 == pytest.approx((lam < 1).mean(), abs=0.05)
    assert len(blended) / len(mixed) == pytest.approx(0.7, abs=0.04)
    assert np.quantile(blended, [0.1, 0.5, 0.9]) == pytest.approx(np.quantile(theirs, [0.1, 0.5, 0.9]), abs=0.06)


def mixed_batch(
    pixels: torch.Tensor,
    labels: torch.Tensor,
    pairs: torch.Tensor,
    lam: torch.Tensor,
    mixes: list[tuple[int, int, Mix]],
) -> MicroBatch:
    """Make a micro-batch of these images and mixes, without erased boxes and padding."""
    count = len(labels)
    return MicroBatch(
        step=0,
        positions=torch.arange(count),
        samples=torch.arange(count),
        weights=torch.ones(count),
        pixels=pixels,
        erased=[(0, 0, 0, 0)] * count,
        noise_keys=[0] * count,
        labels=labels,
        partners=pairs,
        partner_labels=labels[pairs],
        lam=lam,
        mixes=mixes,
    )


@pytest.mark.parametrize("mode", ["batch", "pair", "elem"])
@pytest.mark.parametrize("changes", [{"mixup_alpha": 0.8}, {"mixup_alpha": 0.0, "cutmix_alpha": 1.0}], ids=str)
def test_images_and_targets_of_each_mode_are_those_of_timms_mixup(mode, changes, monkeypatch):
    """timm's `Mixup` runs on our pairs with our draws: pixels are equal bit for bit, targets within rounding."""
    alphas = [f"mix.mixup={changes['mixup_alpha']}", f"mix.cutmix={changes.get('cutmix_alpha', 0)}"]
    recipe = load("demo", ["input.size=16", "batch.global=8", "batch.slices=1", f"mix.mode={mode}", *alphas])
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (8, 3, 16, 16), generator=generator, dtype=torch.uint8)
    labels, pairs = torch.arange(8), torch.arange(8) ^ 1
    mixes = [drawn_mix(recipe, 0, position) for position in range(8)]
    groups = sorted({mixed_alike(recipe, position) for position in range(8)}, key=lambda group: group.start)
    lam = torch.tensor([mix.lam for mix in mixes])
    batch = mixed_batch(pixels, labels, pairs, lam, [(one.start, one.stop, mixes[one.start]) for one in groups])
    preprocessor = DevicePreprocessor(recipe, torch.device("cpu"))
    # timm pairs the first image with the last, so the first images of our pairs are followed by their partners.
    order = torch.tensor([0, 2, 4, 6, 7, 5, 3, 1])
    draws = [mixes[position] for position in order]
    timms = Mixup(**changes, mode=mode, label_smoothing=0.1, num_classes=10)
    drawn = iter(draws[:4] if mode == "pair" else draws)
    boxed = np.full(8, draws[0].box is not None)
    lams = np.array([mix.lam for mix in draws])
    monkeypatch.setattr(timms, "_params_per_batch", lambda: (draws[0].lam, boxed[0]))
    monkeypatch.setattr(timms, "_params_per_elem", lambda count: (lams[:count].copy(), boxed[:count]))
    monkeypatch.setattr("timm.data.mixup.cutmix_bbox_and_lam", lambda *_, **__: ((mix := next(drawn)).box, mix.lam))
    images, targets = timms(preprocessor.normalised(pixels)[order], labels[order])
    ours = preprocessor.images(batch)[order]
    torch.testing.assert_close(ours, images, rtol=0, atol=1e-6)
    torch.testing.assert_close(soft_targets(labels, labels[pairs], lam, 10, 0.1)[order], targets.float())


@pytest.mark.parametrize("mix", [Mix(0.3), Mix(1 - 12 / 64, (2, 5, 1, 5))])
def test_pixels_and_loss_are_timms(mix):
    """For the same pairs, timm's mixing arithmetic, soft targets and loss give the same numbers."""
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (4, 3, 8, 8), generator=generator, dtype=torch.uint8)
    labels, logits = torch.tensor([3, 1, 0, 9]), torch.randn(4, 10, generator=generator)
    pairs = torch.tensor([1, 0, 3, 2])
    batch = mixed_batch(pixels, labels, pairs, torch.full((4,), mix.lam), [(0, 4, mix)])
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
    losses = image_losses(
        logits, batch.labels, batch.partner_labels, batch.lam, batch.weights, LossSettings(smoothing=0.1)
    )
    torch.testing.assert_close(losses.mean(), SoftTargetCrossEntropy()(logits, target))
    # timm pairs the first with the last: with the labels in that order, its targets are the same numbers
    theirs = mixup_target(labels[[0, 2, 3, 1]], 10, mix.lam, 0.1)
    ours = (F.one_hot(labels, 10) * (on - off) + off)[[0, 2, 3, 1]]
    torch.testing.assert_close(theirs, ours * mix.lam + ours.flip(0) * (1 - mix.lam))
