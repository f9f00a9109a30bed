"""The cost of the keyed randomness: our input and masks against plain timm transforms, Mixup, erasing and DropPath.

    python -m tests.benchmarks.input_overhead SHARDS [--size 224] [--rounds 15]

Both decode the same images and apply the same recipe on one thread, in alternating rounds. The result is the ratio of
the median processor times per image. Also printed: the time of the digest of the inputs, the seconds to the first batch
at step 0 and at step 100,000 of 1,281,167 images, and the memory of the order of 14 million samples.
"""

import argparse
import io
import statistics
import tempfile
import time
import tracemalloc
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from timm.data import Mixup, create_transform
from timm.data.random_erasing import RandomErasing
from timm.layers.drop import drop_path

from data.batches import MicroBatches
from data.input_digest import batch_digest, pixel_hashes
from data.loader import load_steps
from data.on_device import DevicePreprocessor
from data.order import shuffled
from data.reading.shards import INDEX_DTYPE, ShardSet, Split
from models.stochastic_depth import StochasticDepth
from recipes.load import load

BATCH, BRANCHES, RATE = 32, 17, 0.1


def timm_round(split, samples, recipe, transform, mixup, erase, scale, shift, branch_input) -> None:
    images = torch.stack([transform(Image.open(io.BytesIO(split.read(i))).convert("RGB")) for i in samples])
    images = erase(images.float().mul_(scale).sub_(shift))
    mixup(images, torch.from_numpy(split.labels[samples].astype(np.int64)))
    for _ in range(BRANCHES):
        drop_path(branch_input, RATE, training=True)


def our_round(dataset, step, preprocessor, depth, branch_input) -> None:
    batch = dataset[(step, 0)]
    preprocessor.images(batch)
    depth.draw(step, batch.positions)
    for branch in depth.branches:
        branch(branch_input)


def overhead(shards: ShardSet, size: int, rounds: int) -> None:
    split = shards.split("train")
    recipe = load(
        "convnext_tiny_in1k", [f"input.size={size}", f"batch.global={BATCH}", "batch.slices=1", "schedule.epochs=100"]
    )
    transform = create_transform(
        size,
        is_training=True,
        use_prefetcher=True,
        color_jitter=0.4,
        auto_augment=recipe.augment.randaugment,
        interpolation="bicubic",
    )
    mixup = Mixup(mixup_alpha=0.8, cutmix_alpha=1.0, label_smoothing=0.1, num_classes=len(shards.classes))
    erase = RandomErasing(0.25, mode="pixel", device="cpu")
    dataset, preprocessor, depth = (
        MicroBatches(split, recipe, 0, BATCH),
        DevicePreprocessor(recipe, torch.device("cpu")),
        StochasticDepth(0, [RATE] * BRANCHES),
    )
    branch_input = torch.randn(BATCH, 96, 14, 14)
    ours: list[float] = []
    theirs: list[float] = []
    for step in range(2 * rounds):  # the first half warms up caches
        samples = shuffled(0, 0, len(split), np.arange(step * BATCH, (step + 1) * BATCH) % len(split))
        started = time.process_time()
        timm_round(
            split, samples, recipe, transform, mixup, erase, preprocessor.scale, preprocessor.shift, branch_input
        )
        middle = time.process_time()
        our_round(dataset, step, preprocessor, depth, branch_input)
        theirs.append(middle - started)
        ours.append(time.process_time() - middle)
    ours, theirs = ours[rounds:], theirs[rounds:]
    ratio = statistics.median(ours) / statistics.median(theirs)
    per_image = [statistics.median(values) / BATCH * 1e3 for values in (ours, theirs)]
    print(
        f"ours {per_image[0]:.2f} ms per image, plain timm {per_image[1]:.2f}: ratio {ratio:.3f} (medians of {rounds})"
    )


def digest(shards: ShardSet, size: int, rounds: int) -> None:
    recipe = load("convnext_tiny_in1k", [f"input.size={size}", f"batch.global={BATCH}", "batch.slices=1"])
    batch = MicroBatches(shards.split("train"), recipe, 0, BATCH)[(0, 0)]
    columns = [tensor.numpy() for tensor in (batch.positions, batch.samples, batch.labels)]
    times = []
    for _ in range(2 * rounds):
        started = time.process_time()
        batch_digest(*columns, pixel_hashes(batch.pixels), batch.erased, batch.noise_keys, batch.mixes, BATCH)
        times.append(time.process_time() - started)
    print(f"digest of the inputs: {statistics.median(times[rounds:]) / BATCH * 1e6:.0f} µs per image")


class Imagenet(Split):
    """An index of ImageNet's length over a few images."""

    def __init__(self, split: Split, folder: Path, samples: int = 1_281_167):  # no super(): nothing else is used
        np.save(folder / "index.npy", np.resize(split.index, samples).astype(INDEX_DTYPE))
        self.split, self.samples = split, samples
        self._labels = np.load(folder / "index.npy", mmap_mode="r")["label"]

    def __len__(self) -> int:
        return self.samples

    @property
    def labels(self) -> np.ndarray:
        return self._labels

    def read_ahead(self, samples: Iterable[int]) -> None:
        self.split.read_ahead(int(sample) % len(self.split) for sample in samples)

    def read(self, i: int) -> bytes:
        return self.split.read(i % len(self.split))


def late_start(shards: ShardSet, rounds: int) -> None:
    recipe = load(
        "convnext_tiny_in1k", ["schedule.epochs=400", "batch.global=64", "batch.slices=2", "schedule.warmup_epochs=1"]
    )
    with tempfile.TemporaryDirectory() as folder:
        imagenet = Imagenet(shards.split("train"), Path(folder))
        times: dict[int, list[float]] = {0: [], 100_000: []}
        for number in range(rounds):  # another step each time, because some images take longer than others
            for place, found in times.items():
                first = place + number
                started = time.perf_counter()
                next(
                    load_steps(MicroBatches(imagenet, recipe, 0, 64), range(first, first + 1), 1, workers=1, pin=False)
                )
                found.append(time.perf_counter() - started)
    early, late = (statistics.median(found) for found in times.values())
    print(
        f"to the first batch: step 0 {early:.2f} s, step 100,000 {late:.2f} s, "
        f"ratio {late / early:.3f} (medians of {rounds})"
    )
    tracemalloc.start()
    shuffled(0, 1, 14_000_000, np.arange(4096))
    print(f"memory of the order of 14 million samples: {tracemalloc.get_traced_memory()[1] / 2**20:.2f} MiB")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    overhead(ShardSet.open(arguments.shards), arguments.size, arguments.rounds)
    digest(ShardSet.open(arguments.shards), arguments.size, arguments.rounds)
    late_start(ShardSet.open(arguments.shards), arguments.rounds)
