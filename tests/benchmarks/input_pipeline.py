"""Images per second and core of the whole training input: ours, timm, torchvision's reference and plain webdataset.

    python -m tests.benchmarks.input_pipeline IMAGES [--images 128] [--rounds 15]

IMAGES is a source for `bigbatch shard`, a folder or zip of photographs. All contenders make batches ``[64, 3, 224,
224]`` of the same images: RandomResizedCrop bicubic, flip, and RandAugment rand-m9-mstd0.5-inc1 or none. Only the
work of a loader's cores counts. Ours and timm hand over uint8 and normalise and erase on the device; torchvision's
reference and webdataset's pipeline do that in the loader. One thread, one process, processor time.

The contenders take turns in short rounds, so that other work on the machine hits all alike. Printed are medians over
the rounds, and ratios within a round with the middle half of the rounds in brackets. Two lower bounds are measured
too: libjpeg-turbo's bare decode of the same bytes, and our decode and resize of the drawn crops alone.
"""

import argparse
import os
import tempfile
import time
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import webdataset
from timm.data import ImageDataset, create_loader, create_transform
from torch.utils.data import DataLoader, RandomSampler
from torchvision import datasets, transforms

from data.batches import MicroBatches
from data.images.augment import TrainTransform, seed_generators
from data.images.decode import Crop, EncodedImage
from data.loader import load_steps
from data.reading.shards import ShardSet
from data.writing.sharding import shard
from recipes.load import load
from recipes.schema import Recipe

BATCH, SIZE = 64, 224
POLICY = "rand-m9-mstd0.5-inc1"
OURS, TIMM = "ours", "timm: ImageFolder, create_transform, its loader"
DECODE, CROPS = "bare libjpeg-turbo decode", "decode and resize of the crops alone"
Batches = Iterator[torch.Tensor]


def recipe_of(policy: str | None) -> Recipe:
    changes = [f"batch.global={BATCH}", "batch.slices=1", "mix.mixup=0", "mix.cutmix=0", "augment.color_jitter=null"]
    return load("convnext_tiny_in1k", [*changes, f"augment.randaugment={policy or 'null'}"])


def ours(shards: ShardSet, policy: str | None) -> Batches:
    dataset = MicroBatches(shards.split("train"), recipe_of(policy), 0, BATCH)
    yield from (batch.pixels for batch in load_steps(dataset, range(10**6), 1, workers=0, pin=False))


def by_timm(folder: Path, policy: str | None) -> Batches:
    loader = create_loader(
        ImageDataset(str(folder)),
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
        auto_augment=policy,
        color_jitter=None,  # type: ignore[arg-type]  # timm's own default when RandAugment is on, and not in its hints
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
    )
    while True:
        yield from (images for images, _ in loader.loader)  # beneath the part that works on the device


def by_torchvision(folder: Path, policy: str | None) -> Batches:
    """The steps of torchvision's reference training preset, in its order."""
    steps = [
        transforms.RandomResizedCrop(SIZE, interpolation=transforms.InterpolationMode.BICUBIC, antialias=True),
        transforms.RandomHorizontalFlip(0.5),
        *([transforms.RandAugment(2, 9, interpolation=transforms.InterpolationMode.BICUBIC)] if policy else []),
        transforms.PILToTensor(),
        transforms.ConvertImageDtype(torch.float),
        transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        transforms.RandomErasing(0.25),
    ]
    dataset = datasets.ImageFolder(folder, transforms.Compose(steps))
    loader = DataLoader(dataset, BATCH, sampler=RandomSampler(dataset), drop_last=True)
    while True:
        yield from (images for images, _ in loader)


def by_webdataset(shards: ShardSet, policy: str | None) -> Batches:
    transform = create_transform(
        SIZE,
        is_training=True,
        auto_augment=policy,
        color_jitter=None,  # type: ignore[arg-type]  # as above
        interpolation="bicubic",
        re_prob=0.25,
        re_mode="pixel",
    )
    urls = [str(path) for path in shards.split("train").shard_paths]
    dataset = (
        webdataset.WebDataset(urls, shardshuffle=False, empty_check=False)
        .shuffle(1000)
        .decode("pil")
        .to_tuple("jpg;png", "cls")
    )
    loader = DataLoader(dataset.map_tuple(transform), BATCH, drop_last=True)
    while True:
        yield from (images for images, _ in loader)


def decoding(shards: ShardSet) -> Iterator[None]:
    """Decode `BATCH` images at a time and drop them."""
    split = shards.split("train")
    while True:
        for start in range(0, len(split) - BATCH + 1, BATCH):
            for sample in range(start, start + BATCH):
                simplejpeg.decode_jpeg(split.read(sample))
            yield None


def cropping(shards: ShardSet, policy: str | None) -> Iterator[None]:
    """Decode and resize the crops that training would draw, `BATCH` images at a time."""
    split, recipe = shards.split("train"), recipe_of(policy)
    transform = TrainTransform(recipe)
    crops = {sample: drawn(transform, EncodedImage(split.read(sample)), sample) for sample in range(len(split))}
    while True:
        for start in range(0, len(split) - BATCH + 1, BATCH):
            for sample in range(start, start + BATCH):
                EncodedImage(split.read(sample)).crop_resized(crops[sample], SIZE, "bicubic")
            yield None


def drawn(transform: TrainTransform, image: EncodedImage, sample: int) -> Crop:
    seed_generators(sample)
    return Crop(
        *transform.crop.get_params(
            torch.empty(0, image.height, image.width), transform.crop.scale, transform.crop.ratio
        )
    )


def times(candidates: dict[str, Iterator], batches: int, rounds: int) -> dict[str, np.ndarray]:
    """Return the milliseconds of processor time per image in each round of `batches` batches."""
    found: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds + 1):  # the first warms up
        for name, source in candidates.items():
            started = time.process_time()
            for images in islice(source, batches):
                assert images is None or images.shape == (BATCH, 3, SIZE, SIZE)
            if number:
                found[name].append((time.process_time() - started) / batches / BATCH * 1e3)
    return {name: np.array(values) for name, values in found.items()}


def profile(shards: ShardSet, policy: str | None) -> dict[str, float]:
    """Return the milliseconds of processor time per image in our stages and in RandAugment's operations."""
    split, recipe = shards.split("train"), recipe_of(policy)
    transform = TrainTransform(recipe)
    samples = range(min(768, len(split)))
    spent: dict[str, float] = defaultdict(float)

    def timed(name: str, work: Callable) -> Callable:
        def timed_work(*arguments, **options):
            started = time.process_time()
            made = work(*arguments, **options)
            spent[name] += (time.process_time() - started) / len(samples) * 1e3
            return made

        return timed_work

    for operation in transform.array_transform.transforms[0].ops if transform.array_transform else ():
        operation.aug_fn = timed(operation.name, operation.aug_fn)
    for sample in samples:
        stored = timed("read", split.read)(sample)
        image = timed("header", EncodedImage)(stored)
        crop = timed("seeds and crop drawn", drawn)(transform, image, sample)
        pixels = timed("decode and resize", image.crop_resized)(crop, SIZE, "bicubic")
        if transform.flip and torch.rand(1) < transform.flip.p:
            pixels = timed("flip", pixels.flip)(2)
        if transform.array_transform:
            timed("all of RandAugment", transform.array_transform)(pixels.permute(1, 2, 0).numpy())
    return dict(sorted(spent.items(), key=lambda of_one: -of_one[1]))


def class_folders(shards: ShardSet, folder: Path) -> None:
    """Write the same images as the plain files that timm and torchvision read."""
    split = shards.split("train")
    for sample in range(len(split)):
        path = folder / str(split.labels[sample]) / f"{sample}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(split.read(sample))


def compare(source: str, images: int, rounds: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        shards = shard(source, Path(folder) / "shards", val_fraction=0, progress=False)
        files = Path(folder) / "files"
        class_folders(shards, files)
        for title, policy, goal in ((f"with RandAugment {POLICY}", POLICY, 2), ("without RandAugment", None, 3)):
            candidates = {
                OURS: ours(shards, policy),
                TIMM: by_timm(files, policy),
                "torchvision reference transforms": by_torchvision(files, policy),
                "webdataset with timm's transform": by_webdataset(shards, policy),
                DECODE: decoding(shards),
                CROPS: cropping(shards, policy),
            }
            found = times(candidates, max(1, images // BATCH), rounds)
            report(title, found, goal)
            print(
                "  profile of ours, ms per image: "
                + ", ".join(f"{name} {spent:.3f}" for name, spent in profile(shards, policy).items())
            )


def report(title: str, found: dict[str, np.ndarray], goal: float) -> None:
    print(f"\n{title}: {'images/s per core':>{58 - len(title)}}   ours is")
    for name, of_rounds in found.items():
        low, ratio, high = np.quantile(of_rounds / found[OURS], (0.25, 0.5, 0.75))
        print(
            f"  {name:<50} {1e3 / np.median(of_rounds):>8.0f}   {ratio:>5.2f} [{low:.2f} to {high:.2f}] times as fast"
        )
    allowed, needed, decode = np.median(found[TIMM]) / goal, np.median(found[CROPS]), np.median(found[DECODE])
    print(
        f"  {goal} times timm's speed is {allowed:.2f} ms per image; "
        f"decode and resize of the crops alone take {needed:.2f} "
        f"(a bare decode {decode:.2f}), ours {np.median(found[OURS]):.2f}"
    )
    print(f"  load of the machine (jobs waiting for one of {os.cpu_count()} cores): {os.getloadavg()[0]:.1f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="IMAGES")
    parser.add_argument("--images", type=int, default=128, help="per round and candidate")
    parser.add_argument("--rounds", type=int, default=15)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    compare(arguments.source, arguments.images, arguments.rounds)
