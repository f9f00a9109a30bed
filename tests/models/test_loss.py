"""Binary cross-entropy is timm's, with its targets of mixed images, its threshold, and its mean or sum."""

import pytest
import torch
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy

from models.loss import image_losses
from recipes.errors import UserError
from recipes.load import load
from recipes.sections import LossSettings

LABELS = torch.tensor([3, 1, 0, 9, 4, 4])


@pytest.mark.parametrize("sum_classes", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.0, 0.2])
@pytest.mark.parametrize("lam", [1.0, 0.85, 0.3])
def test_mixed_images_have_timms_loss_and_gradient(sum_classes, threshold, lam):
    """As timm's training script: smoothing and mixing in the target, then `BinaryCrossEntropy`."""
    ours, theirs = (
        torch.randn(6, 10, generator=torch.Generator().manual_seed(0), requires_grad=True) for _ in range(2)
    )
    chosen = LossSettings(kind="bce", smoothing=0.1, target_threshold=threshold, sum_classes=sum_classes)
    lams, ones = torch.full((6,), lam), torch.ones(6)
    loss = image_losses(ours, LABELS, LABELS.flip(0), lams, ones, chosen).mean()
    target = mixup_target(LABELS, 10, lam, smoothing=0.1)
    expected = BinaryCrossEntropy(target_threshold=threshold, sum_classes=sum_classes)(theirs, target)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    expected.backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_unmixed_images_have_timms_loss_and_padding_has_none():
    logits = torch.randn(6, 10, generator=torch.Generator().manual_seed(0))
    weights = torch.tensor([1.0, 1, 1, 1, 0, 0])
    losses = image_losses(logits, LABELS, LABELS, torch.ones(6), weights, LossSettings(kind="bce", smoothing=0.2))
    torch.testing.assert_close(losses[:4].mean(), BinaryCrossEntropy(smoothing=0.2)(logits[:4], LABELS[:4]))
    assert losses[4:].tolist() == [0, 0]


@pytest.mark.parametrize("change", ["loss.target_threshold=0.2", "loss.sum_classes=true"])
def test_a_key_of_another_loss_is_refused(change):
    with pytest.raises(UserError, match=f"{change.partition('=')[0]} is for loss.kind=bce"):
        load("demo", [change])
    assert load("demo", [change, "loss.kind=bce"]).loss.kind == "bce"
