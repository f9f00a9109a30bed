"""The loss of each image: cross-entropy or binary cross-entropy with mixed and smoothed labels."""

from torch import Tensor
from torch.nn import functional as F

from recipes.sections import LossSettings


def image_losses(
    logits: Tensor, labels: Tensor, partner_labels: Tensor, lam: Tensor, weights: Tensor, chosen: LossSettings
) -> Tensor:
    """Return the loss of each image, float32 ``[n]``.

    Args:
        logits: ``[n, classes]``, any float dtype.
        labels: int64 ``[n]``.
        partner_labels: int64 ``[n]``, labels of the images that they are mixed with.
        lam: float32 ``[n]``, weight of the own label, 0 to 1.
        weights: float32 ``[n]``, factors on the losses; 0 for padding.
        chosen: the recipe's loss section.
    """
    if chosen.kind == "cross_entropy":
        return weights * _mixed_cross_entropy(logits.float(), labels, partner_labels, lam, chosen.smoothing)
    targets = soft_targets(labels, partner_labels, lam, logits.shape[1], chosen.smoothing)
    return weights * _binary_cross_entropy(logits.float(), targets, chosen)


def soft_targets(labels: Tensor, partner_labels: Tensor, lam: Tensor, classes: int, smoothing: float) -> Tensor:
    """Return the mixed and smoothed targets, float32 ``[n, classes]``, with the values of timm's `mixup_target`.

    Args:
        labels: int64 ``[n]``.
        partner_labels: int64 ``[n]``, labels of the images that they are mixed with.
        lam: float32 ``[n]``, weight of the own label, 0 to 1.
        classes: number of classes.
        smoothing: label smoothing, 0 to below 1.
    """
    own, partners = F.one_hot(labels, classes).float(), F.one_hot(partner_labels, classes).float()
    mixed = lam[:, None] * own + (1 - lam[:, None]) * partners
    return (1 - smoothing) * mixed + smoothing / classes


def _mixed_cross_entropy(
    logits: Tensor, labels: Tensor, partner_labels: Tensor, lam: Tensor, smoothing: float
) -> Tensor:
    """Return the cross-entropy of each image with its `soft_targets`, without building them."""
    log_probabilities = F.log_softmax(logits, dim=-1)
    own = log_probabilities.gather(1, labels[:, None])[:, 0]
    partners = log_probabilities.gather(1, partner_labels[:, None])[:, 0]
    likelihood = lam * own + (1 - lam) * partners
    return -((1 - smoothing) * likelihood + smoothing * log_probabilities.mean(dim=-1))


def _binary_cross_entropy(logits: Tensor, targets: Tensor, chosen: LossSettings) -> Tensor:
    """Return the mean or sum over the classes as timm's `BinaryCrossEntropy` computes it, for each image."""
    if chosen.target_threshold is not None:
        targets = (targets > chosen.target_threshold).float()
    losses = F.binary_cross_entropy_with_logits(logits, targets, reduction="none")
    return losses.sum(dim=-1) if chosen.sum_classes else losses.mean(dim=-1)
