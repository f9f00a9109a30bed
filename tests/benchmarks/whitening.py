"""Prints the variances of 2x2 patches in the directions of the whitening layer of `models.cifar_convnet`.

python -m tests.benchmarks.whitening shards/cifar10
"""

import argparse
from pathlib import Path

import torch
from torch import Tensor

from data.batches import EvalBatches
from data.loader import load_evaluation
from data.on_device import DevicePreprocessor
from data.reading.shards import ShardSet
from models.cifar_convnet import patch_directions
from recipes.load import load


def patch_variances(shards: ShardSet) -> Tensor:
    """Return the mean square of each direction over all patches of the training images, float64 ``[3, 4]``."""
    recipe = load("convnet_cifar10")
    train, preprocessor = shards.split("train"), DevicePreprocessor(recipe, torch.device("cpu"))
    directions, total, patches = patch_directions(), torch.zeros(12, dtype=torch.float64), 0
    for pixels, _ in load_evaluation(EvalBatches(train, recipe, 0, len(train), 256), workers=0, pin=False):
        found = torch.nn.functional.conv2d(preprocessor.normalised(pixels), directions)
        total += found.double().square().sum((0, 2, 3))
        patches += found[:, 0].numel()
    return (total / patches).reshape(3, 4)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    for row in patch_variances(ShardSet.open(parser.parse_args().shards)).tolist():
        print(" ".join(f"{variance:.3g}" for variance in row))
