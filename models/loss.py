"""The loss of a step: cross-entropy with mixed and smoothed labels."""

from torch import Tensor
from torch.nn import functional as F


def mixed_cross_entropy(
    logits: Tensor, labels: Tensor, partner_labels: Tensor, lam: Tensor, weights: Tensor, smoothing: float
) -> Tensor:
    """Return the loss of each image, float32 ``[n]``.

    The target has ``lam`` at the image's own label and ``1 - lam`` at its partner's, and is then smoothed with
    ``smoothing``. This gives the values of timm's `mixup_target` without building the dense target.

    Args:
        logits: ``[n, classes]``, any float dtype.
        labels: int64 ``[n]``.
        partner_labels: int64 ``[n]``, labels of the images that they are mixed with.
        lam: float32 ``[n]``, weight of the own label, 0 to 1.
        weights: float32 ``[n]``, factors on the losses; 0 for padding.
        smoothing: label smoothing, 0 to below 1.
    """
    log_probabilities = F.log_softmax(logits.float(), dim=-1)
    own = log_probabilities.gather(1, labels[:, None])[:, 0]
    partners = log_probabilities.gather(1, partner_labels[:, None])[:, 0]
    likelihood = lam * own + (1 - lam) * partners
    return -weights * ((1 - smoothing) * likelihood + smoothing * log_probabilities.mean(dim=-1))
