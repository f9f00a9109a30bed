"""Isotropic ConvNeXt (ConvNeXt paper, section 3.3): blocks of one width at one resolution, as in a ViT.

The stem divides the image into patches of 16 pixels. After the blocks, features are averaged over all patches and
normalised. Blocks are timm's. `checkpoint_filter_fn` renames the released weights, whose other names are the same.
Importing this module registers the networks with timm, e.g. for ``timm.create_model("convnext_isotropic_small")``.
"""

from typing import Any

from timm.models import checkpoint_seq
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from models.convnext_initialisation import initialise
from models.timm_registry import IMAGENET, configurations, register_networks

_PATCH = 16  # pixels
_NETWORKS = {
    "convnext_isotropic_small": {"depth": 18, "width": 384},
    "convnext_isotropic_base": {"depth": 18, "width": 768},
    "convnext_isotropic_large": {"depth": 36, "width": 1024},
    "test_convnext_isotropic": {"depth": 2, "width": 32},
}
_RENAMED = {"dwconv": "conv_dw", "pwconv1": "mlp.fc1", "pwconv2": "mlp.fc2"}  # the released code's names to timm's


class ConvNeXtIsotropic(nn.Module):
    """Maps images, float32 ``[n, 3, size, size]``, to logits, ``[n, num_classes]``.

    Weights are initialised from a truncated normal with std 0.02 and biases with 0, as in the released code.
    """

    def __init__(
        self,
        depth: int,
        width: int,
        num_classes: int = 1000,
        in_chans: int = 3,
        drop_path_rate: float = 0.0,
        ls_init_value: float | None = None,
    ):
        """Build the network; the last four arguments are those of timm's ConvNeXt."""
        super().__init__()
        self.num_classes, self.num_features = num_classes, width
        self.stem = nn.Conv2d(in_chans, width, kernel_size=_PATCH, stride=_PATCH)
        rates = [drop_path_rate * block / (depth - 1) for block in range(depth)]
        self.blocks = nn.Sequential(*(ConvNeXtBlock(width, drop_path=r, ls_init_value=ls_init_value) for r in rates))
        self.norm = nn.LayerNorm(width, eps=1e-6)
        self.head = nn.Linear(width, num_classes)
        self.grad_checkpointing = False
        self.apply(initialise)

    def forward_features(self, images: Tensor) -> Tensor:
        patches = self.stem(images)
        return checkpoint_seq(self.blocks, patches) if self.grad_checkpointing else self.blocks(patches)

    def forward_head(self, features: Tensor, pre_logits: bool = False) -> Tensor:
        pooled = self.norm(features.mean(dim=(2, 3)))
        return pooled if pre_logits else self.head(pooled)

    def forward(self, images: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(images))

    def get_classifier(self) -> nn.Module:
        return self.head

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return timm's patterns of the groups of layers: stem, and every block, the last one with the norm."""
        return {"stem": r"^stem", "blocks": [(r"^blocks\.(\d+)", None), (r"^norm", (99999,))]}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute the activations inside blocks in the backward pass instead of storing them."""
        self.grad_checkpointing = enable


def checkpoint_filter_fn(weights: dict[str, Tensor], _model: nn.Module) -> dict[str, Tensor]:
    """Return weights under the names that they have here; those of the released code are renamed."""
    return {".".join(_RENAMED.get(part, part) for part in name.split(".")): value for name, value in weights.items()}


default_cfgs = configurations(_NETWORKS, IMAGENET, pool_size=(14, 14), first_conv="stem", classifier="head")
register_networks(__name__, ConvNeXtIsotropic, _NETWORKS)
