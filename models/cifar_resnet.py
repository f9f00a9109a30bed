"""timm's ResNet and ResNeXt with the stem for images of 32 pixels: a 3x3 convolution without stride, and no max pool.

It is the stem of He et al. for CIFAR-10 (arXiv 1512.03385, section 4.2) on the networks for ImageNet. With the usual
stem, the first stage of a 32-pixel image would have 8 x 8 positions and the last one a single position.
"""

from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from timm.models.resnet import BasicBlock, Bottleneck, ResNet
from torch import nn

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


default_cfgs = generate_default_cfgs(  # timm's registry looks for this name in the module
    {
        name: {
            "num_classes": 10,
            "input_size": (3, 32, 32),
            "pool_size": (4, 4),
            "crop_pct": 1.0,
            "interpolation": "bicubic",
            "mean": (0.4914, 0.4822, 0.4465),
            "std": (0.2470, 0.2435, 0.2616),
            "first_conv": "conv1",
            "classifier": "fc",
        }
        for name in _NETWORKS
    }
)


def _register(name: str, network: dict[str, Any]) -> None:
    def make(pretrained: bool = False, **options: Any) -> CifarResNet:
        return build_model_with_cfg(CifarResNet, name, pretrained, **{**network, **options})

    make.__name__ = name
    register_model(make)


for _name, _network in _NETWORKS.items():
    _register(_name, _network)
