"""timm's ResNet and ResNeXt with the stem for images of 32 pixels: a 3x3 convolution without stride, and no max pool.

It is the stem of He et al. for CIFAR-10 (arXiv 1512.03385, section 4.2) on the networks for ImageNet. With the usual
stem, the first stage of a 32-pixel image would have 8 x 8 positions and the last one a single position.
"""

from typing import Any

from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

from models.timm_registry import CIFAR10, configurations, register_networks

_WIDTH = 64  # channels of the stem, as in the networks for ImageNet
_NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18_cifar": {"block": BasicBlock, "layers": (2, 2, 2, 2)},
    "resnet34_cifar": {"block": BasicBlock, "layers": (3, 4, 6, 3)},
    "resnet50_cifar": {"block": Bottleneck, "layers": (3, 4, 6, 3)},
    "resnext50_32x4d_cifar": {"block": Bottleneck, "layers": (3, 4, 6, 3), "cardinality": 32, "base_width": 4},
}


class CifarResNet(ResNet):
    """A ResNet whose first stage sees the image at its full resolution."""

    def __init__(self, in_chans: int = 3, **options: Any):
        super().__init__(in_chans=in_chans, **options)
        stem = nn.Conv2d(in_chans, _WIDTH, kernel_size=3, padding=1, bias=False)
        nn.init.kaiming_normal_(stem.weight, mode="fan_out", nonlinearity="relu")  # as timm's other convolutions
        self.add_module("conv1", stem)
        self.add_module("maxpool", nn.Identity())


default_cfgs = configurations(_NETWORKS, CIFAR10, pool_size=(4, 4), first_conv="conv1", classifier="fc")
register_networks(__name__, CifarResNet, _NETWORKS)
