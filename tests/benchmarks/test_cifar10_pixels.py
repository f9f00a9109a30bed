"""The script that unpacks CIFAR-10's original pixels writes files that `bigbatch shard` reads as the same images."""

import io
import json
from pathlib import Path

import numpy as np
from PIL import Image

from data.sources.cifar10 import BATCHES
from data.sources.recognition import open_source
from tests.benchmarks.cifar10_pixels import CLASSES, read_package, write_binary

EACH = 4  # images of a batch


def test_the_pixels_and_labels_of_a_package_come_through_unchanged(tmp_path: Path) -> None:
    drawn = np.random.default_rng(0)
    pixels = drawn.integers(0, 256, (len(BATCHES), EACH, 32, 32, 3), np.uint8)
    labels = drawn.integers(0, len(CLASSES), (len(BATCHES), EACH))
    package = tmp_path / "package"
    package.mkdir()
    for name, images in zip(BATCHES, pixels):
        Image.fromarray(images.reshape(EACH, 1024, 3)).save(package / f"{name}.png")
    (package / "train_lables.json").write_text(json.dumps(labels[:-1].reshape(-1).tolist()))
    (package / "test_lables.json").write_text(json.dumps(labels[-1].tolist()))

    write_binary(read_package(package), tmp_path / "binary")

    source = open_source(str(tmp_path / "binary"), val_fraction=0)
    assert source.kind == "CIFAR-10"
    read = np.stack([np.asarray(Image.open(io.BytesIO(source.read(i)))) for i in range(len(pixels) * EACH)])
    np.testing.assert_array_equal(read, pixels.reshape(-1, 32, 32, 3))
    np.testing.assert_array_equal(source.listing.labels, labels.reshape(-1))
