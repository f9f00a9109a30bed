"""The roadmap from ResNet-50 to ConvNeXt-T (ConvNeXt paper, section 2): one network class, one change per step.

`ROAD` maps the name of each step to its `Design`. Importing this module registers all of them with timm, e.g. for
``timm.create_model("roadmap_02_patchify")``. The first step is ResNet-50 as in timm and torchvision, plus layer scale.
The last step is ConvNeXt-T with timm's parameter names, so it loads timm's ConvNeXt-T weights and the reverse.

The table shows top-1 on ImageNet-1K and billions of multiply-adds at 224 pixels, from the paper's table 10 (three
seeds, the recipe of its table 5 without EMA). The last column is what `models.cost` counts for these networks:

    step                          top-1   paper   counted
    roadmap_00_resnet50           78.82    4.09      4.09     76.13 with the classic recipe
    roadmap_01_stage_ratio        79.36    4.53      4.53
    roadmap_02_patchify           79.51    4.42      4.42
    roadmap_03_depthwise          78.28    2.35      2.35
    roadmap_04_width              80.50    5.27      5.27
    roadmap_05_inverted           80.64    4.64      4.64
    roadmap_06_depthwise_first    79.92    4.07      4.07
    roadmap_07_kernel_5           80.35    4.10      4.10
    roadmap_08_kernel_7           80.57    4.15      4.15
    roadmap_09_kernel_9           80.57    4.21      4.21     a side branch
    roadmap_10_kernel_11          80.47    4.29      4.29     a side branch
    roadmap_11_gelu               80.62    4.15      4.15     continues from kernel 7
    roadmap_12_one_activation     81.27    4.15      4.15
    roadmap_13_one_norm           81.41    4.15      4.15
    roadmap_14_layer_norm         81.47    4.46      4.15
    roadmap_15_convnext_tiny      81.97    4.49      4.46

The paper's 4.46 for LayerNorm is a slip. Replacing a norm changes no convolution, the paper's figure 2 prints 4.2 at
that step, and its table 11 (the same roadmap from ResNet-200) has 14.81 before and after it. 4.46 is the count of the
*next* step. The paper prints 4.49 there, 0.8% more. Its table 11 has 15.35 for ConvNeXt-B, which is the count of
convolutions and linear layers alone. So 4.46 follows the paper's own way of counting and 4.49 does not.

The paper leaves some details open; these are the choices made here. The stem keeps ResNet's norm and activation until
the steps that reduce a block to one of each, and has a norm again from the separate downsampling on. Projection
shortcuts lose their norm together with the block. Convolutions have a bias from the first step in which some of them
are not followed by a norm.
"""

from dataclasses import dataclass, replace

import torch
from timm.layers import DropPath, LayerNorm2d, NormMlpClassifierHead, calculate_drop_path_rates
from timm.models import checkpoint_seq
from timm.models.convnext import checkpoint_filter_fn  # noqa: F401  the last step loads ConvNeXt's own weights
from torch import Tensor, nn
from torch.nn import functional as F

from models.convnext_initialisation import initialise
from models.timm_registry import IMAGENET, configurations, register_networks


@dataclass(frozen=True)
class Design:
    """The settings that change along the roadmap; the defaults give ResNet-50."""

    depths: tuple[int, int, int, int] = (3, 4, 6, 3)  # blocks per stage
    patchify: bool = False  # stem of 4x4, stride 4 instead of 7x7, stride 2, and 3x3 max pooling
    depthwise: bool = False  # the spatial convolution treats each channel separately
    width: int = 64  # channels of the stem, doubled from stage to stage
    inverted: bool = False  # the middle of a block is wider than its ends, instead of narrower
    depthwise_first: bool = False  # the spatial convolution is a block's first layer instead of its middle one
    kernel: int = 3  # of the spatial convolution
    activation: type[nn.Module] = nn.ReLU
    # per block, between its 1x1 convolutions; otherwise one after every layer and after the sum
    one_activation: bool = False
    one_norm: bool = False  # per block, after its spatial convolution; else one after every layer
    norm: type[nn.Module] = nn.BatchNorm2d
    separate_downsampling: bool = False  # norm and 2x2 convolution between stages; norms after the stem and the pooling

    def stage_width(self, stage: int) -> int:
        """Return the number of channels between the blocks of a stage."""
        return self.width * 2**stage * (1 if self.inverted else 4)


_resnet50 = Design()
_stage_ratio = replace(_resnet50, depths=(3, 3, 9, 3))
_patchify = replace(_stage_ratio, patchify=True)
_depthwise = replace(_patchify, depthwise=True)
_width = replace(_depthwise, width=96)
_inverted = replace(_width, inverted=True)
_depthwise_first = replace(_inverted, depthwise_first=True)
_kernel_5 = replace(_depthwise_first, kernel=5)
_kernel_7 = replace(_depthwise_first, kernel=7)
_kernel_9 = replace(_depthwise_first, kernel=9)
_kernel_11 = replace(_depthwise_first, kernel=11)
_gelu = replace(_kernel_7, activation=nn.GELU)
_one_activation = replace(_gelu, one_activation=True)
_one_norm = replace(_one_activation, one_norm=True)
_layer_norm = replace(_one_norm, norm=LayerNorm2d)
_convnext_tiny = replace(_layer_norm, separate_downsampling=True)

ROAD: dict[str, Design] = {
    "roadmap_00_resnet50": _resnet50,
    "roadmap_01_stage_ratio": _stage_ratio,
    "roadmap_02_patchify": _patchify,
    "roadmap_03_depthwise": _depthwise,
    "roadmap_04_width": _width,
    "roadmap_05_inverted": _inverted,
    "roadmap_06_depthwise_first": _depthwise_first,
    "roadmap_07_kernel_5": _kernel_5,
    "roadmap_08_kernel_7": _kernel_7,
    "roadmap_09_kernel_9": _kernel_9,
    "roadmap_10_kernel_11": _kernel_11,
    "roadmap_11_gelu": _gelu,
    "roadmap_12_one_activation": _one_activation,
    "roadmap_13_one_norm": _one_norm,
    "roadmap_14_layer_norm": _layer_norm,
    "roadmap_15_convnext_tiny": _convnext_tiny,
}


class RoadmapNet(nn.Module):
    """The network of one step: maps images, float32 ``[n, 3, size, size]``, to logits, ``[n, num_classes]``.

    Parameters are named as in timm's ConvNeXt. Weights are initialised from a truncated normal with std 0.02 and biases
    with 0, as in ConvNeXt's code.
    """

    def __init__(
        self,
        design: Design,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        ls_init_value: float | None = 1e-6,
    ):
        """Build the network; the arguments after `design` are those of timm's ConvNeXt."""
        super().__init__()
        self.num_classes = num_classes
        self.stem = _stem(design, in_chans)
        rates = [
            stage if isinstance(stage, list) else [stage]
            for stage in calculate_drop_path_rates(drop_path_rate, list(design.depths), stagewise=True)
        ]
        widths = [design.width, *map(design.stage_width, range(4))]
        self.stages = nn.Sequential(
            *(Stage(design, stage, widths[stage], widths[stage + 1], rates[stage], ls_init_value) for stage in range(4))
        )
        self.num_features = widths[-1]
        last_norm = design.norm if design.separate_downsampling else nn.Identity
        self.head = NormMlpClassifierHead(self.num_features, num_classes, norm_layer=last_norm)
        self.apply(initialise)

    def forward_features(self, images: Tensor) -> Tensor:
        return self.stages(self.stem(images))

    def forward_head(self, features: Tensor) -> Tensor:
        return self.head(features)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        return self.head.fc

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations inside blocks in the backward pass instead of storing them."""
        for stage in self.stages.children():
            if isinstance(stage, Stage):
                stage.grad_checkpointing = enable


class Stage(nn.Module):
    """The blocks of one resolution.

    From the second stage on, the first block or the downsampling layer before it halves the resolution.
    """

    def __init__(
        self, design: Design, stage: int, in_width: int, width: int, drop_paths: list[float], layer_scale: float | None
    ):
        super().__init__()
        stride = 2 if stage > 0 else 1
        self.downsample: nn.Module = nn.Identity()
        if design.separate_downsampling and stride > 1:
            self.downsample = nn.Sequential(design.norm(in_width), nn.Conv2d(in_width, width, 2, stride))
            in_width, stride = width, 1
        first = Block(design, in_width, width, stride, drop_paths[0], layer_scale)
        self.blocks = nn.Sequential(
            first, *(Block(design, width, width, 1, rate, layer_scale) for rate in drop_paths[1:])
        )
        self.grad_checkpointing = False

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        return checkpoint_seq(self.blocks, x) if self.grad_checkpointing else self.blocks(x)


class Block(nn.Module):
    """A residual block: two 1x1 convolutions, and the spatial one between them or before them."""

    def __init__(
        self, design: Design, in_width: int, width: int, stride: int, drop_path: float, layer_scale: float | None
    ):
        super().__init__()
        middle = 4 * width if design.inverted else width // 4
        spatial = in_width if design.depthwise_first else middle
        groups = spatial if design.depthwise else 1
        bias = design.one_norm
        every_norm = nn.Identity if design.one_norm else design.norm
        every_activation = nn.Identity if design.one_activation else design.activation

        self.depthwise_first = design.depthwise_first
        self.conv_dw = nn.Conv2d(spatial, spatial, design.kernel, stride, design.kernel // 2, groups=groups, bias=bias)
        self.norm = design.norm(spatial)
        self.act = every_activation()
        # A dictionary of layers, because their names are those of timm's ConvNeXt and `forward` takes them one by one.
        self.mlp = nn.ModuleDict(
            {
                "fc1": PointwiseConv(in_width, middle, bias),
                "norm1": every_norm(middle),
                "act": design.activation(),
                "fc2": PointwiseConv(middle, width, bias),
                "norm2": every_norm(width),
            }
        )
        self.gamma = nn.Parameter(torch.full((width,), layer_scale)) if layer_scale is not None else None
        self.drop_path = DropPath(drop_path) if drop_path > 0 else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or in_width != width:
            self.shortcut = nn.Sequential(nn.Conv2d(in_width, width, 1, stride, bias=bias), every_norm(width))
        self.act_after_sum = every_activation()

    def forward(self, x: Tensor) -> Tensor:
        branch = self._spatial(x) if self.depthwise_first else x
        branch = self.mlp["act"](self.mlp["norm1"](self.mlp["fc1"](branch)))
        branch = branch if self.depthwise_first else self._spatial(branch)
        branch = self.mlp["norm2"](self.mlp["fc2"](branch))
        if self.gamma is not None:
            branch = branch * self.gamma.view(1, -1, 1, 1)
        return self.act_after_sum(self.shortcut(x) + self.drop_path(branch))

    def _spatial(self, x: Tensor) -> Tensor:
        return self.act(self.norm(self.conv_dw(x)))


class PointwiseConv(nn.Linear):
    """A 1x1 convolution whose weight is ``[out, in]``, as in timm's ConvNeXt."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight[:, :, None, None], self.bias)


def _stem(design: Design, in_chans: int) -> nn.Sequential:
    has_norm = not design.one_norm or design.separate_downsampling
    kernel, stride, padding = (4, 4, 0) if design.patchify else (7, 2, 3)
    layers: list[nn.Module] = [nn.Conv2d(in_chans, design.width, kernel, stride, padding, bias=design.one_norm)]
    if has_norm:
        layers.append(design.norm(design.width))
    if not design.one_activation:
        layers.append(design.activation())
    if not design.patchify:
        layers.append(nn.MaxPool2d(3, stride=2, padding=1))
    return nn.Sequential(*layers)


default_cfgs = configurations(ROAD, IMAGENET, pool_size=(7, 7), first_conv="stem.0", classifier="head.fc")
register_networks(__name__, RoadmapNet, {name: {"design": design} for name, design in ROAD.items()})
