"""A small convolutional network for CIFAR-10 that reaches a high accuracy in few epochs, after airbench.

The design is that of K. Jordan, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv 2404.00498, section 3): a
fixed whitening layer, three groups of two 3x3 convolutions that start as the identity, BatchNorm without a scale, GELU,
and logits that are divided by nine.

One thing differs. There, the whitening layer is computed from the images right before training, and its bias is trained
for the first epochs. Here, it is made of fixed numbers, so the initial weights are a function of the seed alone. Hence
nothing before the first 3x3 convolution needs a gradient.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.timm_registry import CIFAR10, configurations, register_networks

# The variance of each whitened direction over all 2x2 patches of CIFAR-10's training images, after normalisation with
# the mean and std below. Rows: grey, red - blue, magenta - green. Columns: mean, horizontal, vertical and diagonal
# difference. `python -m tests.benchmarks.whitening shards/cifar10` prints them.
_VARIANCES = (
    (10.04, 0.341, 0.399, 0.0546),
    (0.761, 0.00394, 0.00580, 0.00023),
    (0.173, 0.00169, 0.00223, 0.00015),
)
_FLOOR = 5e-4  # added to the variances, so that a direction of pure noise is not amplified
_LOGIT_SCALE = 1 / 9
_STATISTICS_MOMENTUM = 0.4  # share of the last step in BatchNorm's running mean and variance


def patch_directions() -> Tensor:
    """Return twelve orthonormal directions of 2x2 patches in three channels, float32 ``[12, 3, 2, 2]``.

    They are products of three colour directions and the four Haar functions. These are nearly the principal components
    of patches of photographs.
    """
    colours = torch.tensor([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / torch.tensor([3, 2, 6]).sqrt()[:, None]
    haar = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2
    return torch.einsum("kc,hp->khcp", colours, haar).reshape(12, 3, 2, 2)


class Whitening(nn.Module):
    """A fixed 2x2 convolution to 24 channels: each whitened direction and its negative."""

    weight: Tensor

    def __init__(self) -> None:
        super().__init__()
        scale = (torch.tensor(_VARIANCES) + _FLOOR).rsqrt().reshape(12, 1, 1, 1)
        whitened = patch_directions() * scale
        self.register_buffer("weight", torch.cat([whitened, -whitened]))

    def forward(self, images: Tensor) -> Tensor:
        return F.conv2d(images, self.weight)


class ConvGroup(nn.Module):
    """Two 3x3 convolutions, each with BatchNorm and GELU; the first is followed by 2x2 max pooling."""

    def __init__(self, in_width: int, width: int):
        super().__init__()
        self.conv1, self.norm1 = _identity_conv(in_width, width), _norm(width)
        self.conv2, self.norm2 = _identity_conv(width, width), _norm(width)

    def forward(self, x: Tensor) -> Tensor:
        x = F.gelu(self.norm1(F.max_pool2d(self.conv1(x), 2)))
        return F.gelu(self.norm2(self.conv2(x)))


class CifarConvNet(nn.Module):
    """The network: maps images, float32 ``[n, 3, 32, 32]``, to logits, ``[n, num_classes]``."""

    def __init__(self, widths: tuple[int, int, int] = (64, 256, 256), num_classes: int = 10, in_chans: int = 3):
        super().__init__()
        if in_chans != 3:
            raise ValueError("the whitening layer takes images of three channels")
        self.num_classes, self.num_features = num_classes, widths[-1]
        self.whitening = Whitening()
        self.groups = nn.Sequential(
            *(ConvGroup(before, after) for before, after in zip((len(self.whitening.weight), *widths), widths))
        )
        self.head = nn.Linear(self.num_features, num_classes, bias=False)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.groups(F.gelu(self.whitening(images)))

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = F.adaptive_max_pool2d(features, 1).flatten(1)
        return pooled if pre_logits else self.head(pooled) * _LOGIT_SCALE

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        return self.head


def _identity_conv(in_width: int, width: int) -> nn.Conv2d:
    """Return a 3x3 convolution whose first `in_width` filters copy the input; the others are torch's default."""
    conv = nn.Conv2d(in_width, width, 3, padding=1, bias=False)
    nn.init.dirac_(conv.weight[:in_width].detach())
    return conv


def _norm(width: int) -> nn.BatchNorm2d:
    norm = nn.BatchNorm2d(width, eps=1e-12, momentum=_STATISTICS_MOMENTUM)
    norm.weight.requires_grad_(False)
    return norm


# Three groups of 64, 256 and 256 channels: 2.0 million parameters.
default_cfgs = configurations(
    ["cifar_convnet"], CIFAR10, pool_size=(3, 3), first_conv="groups.0.conv1", classifier="head"
)
register_networks(__name__, CifarConvNet, {"cifar_convnet": {}})
