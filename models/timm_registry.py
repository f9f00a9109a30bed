"""Registers our own networks with timm, so that ``timm.create_model`` builds them by name."""

from collections.abc import Iterable, Mapping
from typing import Any

from timm.models import build_model_with_cfg, generate_default_cfgs, register_model
from torch import nn

IMAGENET: dict[str, Any] = {
    "num_classes": 1000,
    "input_size": (3, 224, 224),
    "crop_pct": 0.875,
    "interpolation": "bicubic",
    "mean": (0.485, 0.456, 0.406),
    "std": (0.229, 0.224, 0.225),
}
CIFAR10: dict[str, Any] = {
    "num_classes": 10,
    "input_size": (3, 32, 32),
    "crop_pct": 1.0,
    "interpolation": "bicubic",
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2470, 0.2435, 0.2616),
}


def configurations(
    names: Iterable[str], images: dict[str, Any], pool_size: tuple[int, int], first_conv: str, classifier: str
) -> Mapping[str, Any]:
    """Return timm's configurations of some networks. A module must have them as `default_cfgs` before it registers any.

    Args:
        names: of the networks.
        images: what they are made for, `IMAGENET` or `CIFAR10`.
        pool_size: height and width of the last features.
        first_conv: the name of the first convolution.
        classifier: the name of the last linear layer.
    """
    layers = {"pool_size": pool_size, "first_conv": first_conv, "classifier": classifier}
    found: Mapping[str, Any] = generate_default_cfgs(dict.fromkeys(names, images | layers))
    return found


def register_networks(module: str, network: type[nn.Module], networks: Mapping[str, dict[str, Any]]) -> None:
    """Register variants of a network with timm.

    Args:
        module: the name of the module that defines them and has their `default_cfgs`.
        network: the class.
        networks: the arguments of the class that make each variant, by the variant's name.
    """
    for name, arguments in networks.items():
        _register(module, name, network, arguments)


def _register(module: str, name: str, network: type[nn.Module], arguments: dict[str, Any]) -> None:
    def make(pretrained: bool = False, **options: Any) -> nn.Module:
        built: nn.Module = build_model_with_cfg(network, name, pretrained, **{**arguments, **options})
        return built

    make.__name__, make.__module__ = name, module
    register_model(make)
