"""Images per second and core of the whole training input: ours against timm, torchvision's reference and plain webdataset.

    python -m tests.benchmarks.input_pipeline PHOTOGRAPHS [--images 512] [--rounds 5]

PHOTOGRAPHS is what `bigbatch shard` takes and timm's ImageFolder layout can be made of: a folder or zip of photographs.
All make batches ``[64, 3, 224, 224]`` of the same photographs: RandomResizedCrop bicubic, flip, RandAugment
rand-m9-mstd0.5-inc1 or none. What is counted is what costs a loader's cores: ours and timm's hand over uint8 and normalise
and erase on the device; torchvision's reference and webdataset's pipeline do that in the loader. One thread, one process,
in alternating rounds over the same number of images; figures are medians of processor time, which other work on the
machine disturbs least. The floor is libjpeg-turbo's bare decode of the same bytes.
"""

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path

import numpy as np
import simplejpeg
import torch
import webdataset
from PIL import Image
from timm.data import ImageDataset, create_loader, create_transform
from torch.utils.data import DataLoader, RandomSampler
from torchvision import datasets, transforms

from data.augment import TrainTransform, seed_generators
from data.batches import MicroBatches, load_steps
from data.decode import Crop, EncodedImage
from data.sharding import shard
from data.shards import ShardSet
from recipes.load import load
from recipes.schema import Recipe

BATCH, SIZE = 64, 224
POLICY = "rand-m9-mstd0.5-inc1"
Batches = Iterator[torch.Tensor]


def recipe_of(policy: str | None) -> Recipe:
    changes = [f"batch.global={BATCH}", "batch.slices=1", "mix.mixup=0", "mix.cutmix=0", "augment.color_jitter=null"]
    return load("convnext_tiny_in1k", [*changes, f"augment.randaugment={policy or 'null'}"])


def ours(shards: ShardSet, policy: str | None) -> Batches:
    dataset = MicroBatches(shards.split("train"), recipe_of(policy), 0, BATCH)
    yield from (batch.pixels for batch in load_steps(dataset, range(10**6), 1, workers=0, pin=False))


def by_timm(folder: Path, policy: str | None) -> Batches:
    options = {"auto_augment": policy, "color_jitter": None, "interpolation": "bicubic", "re_prob": 0.25, "re_mode": "pixel"}
    loader = create_loader(
        ImageDataset(str(folder)),
        (3, SIZE, SIZE),
        BATCH,
        is_training=True,
        num_workers=0,
        persistent_workers=False,
        device=torch.device("cpu"),
        **options,
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
        SIZE, is_training=True, auto_augment=policy, color_jitter=None, interpolation="bicubic", re_prob=0.25, re_mode="pixel"
    )
    urls = [str(path) for path in shards.split("train").shard_paths]
    dataset = webdataset.WebDataset(urls, shardshuffle=False, empty_check=False).shuffle(1000).decode("pil").to_tuple("jpg;png", "cls")
    loader = DataLoader(dataset.map_tuple(transform), BATCH, drop_last=True)
    while True:
        yield from (images for images, _ in loader)


def decoding(shards: ShardSet) -> Iterator[None]:
    """The floor: `BATCH` photographs a time, decoded and thrown away."""
    split = shards.split("train")
    while True:
        for start in range(0, len(split) - BATCH + 1, BATCH):
            for sample in range(start, start + BATCH):
                simplejpeg.decode_jpeg(split.read(sample))
            yield None


def rates(candidates: dict[str, Iterator], batches: int, rounds: int) -> dict[str, float]:
    """Images per second of processor time, median over rounds in which each makes that many batches."""
    found = {name: [] for name in candidates}
    for number in range(rounds + 1):  # the first warms up
        for name, source in candidates.items():
            started = time.process_time()
            for images in islice(source, batches):
                assert images is None or images.shape == (BATCH, 3, SIZE, SIZE)
            if number:
                found[name].append(batches * BATCH / (time.process_time() - started))
    return {name: statistics.median(values) for name, values in found.items()}


def profile(shards: ShardSet, policy: str | None) -> dict[str, float]:
    """Milliseconds of processor time an image in each stage of ours."""
    split, recipe = shards.split("train"), recipe_of(policy)
    transform = TrainTransform(recipe)
    samples = range(min(384, len(split)))
    spent: dict[str, float] = {}

    def stage(name: str, work: Callable, arguments) -> list:
        started = time.process_time()
        made = [work(*of_one) for of_one in arguments]
        spent[name] = (time.process_time() - started) / len(samples) * 1e3
        return made

    def draw(image: EncodedImage, sample: int) -> Crop:
        seed_generators(sample)
        return Crop(*transform.crop.get_params(torch.empty(0, image.height, image.width), transform.crop.scale, transform.crop.ratio))

    stored = stage("read", split.read, zip(samples))
    headers = stage("header", EncodedImage, zip(stored))
    crops = stage("seeds and crop drawn", draw, zip(headers, samples))
    stage("decode", lambda data: simplejpeg.decode_jpeg(data) is None, zip(stored))
    cropped = stage("decode and resize", lambda image, crop: image.crop_resized(crop, SIZE, "bicubic"), zip(headers, crops))
    spent["resize"] = spent.pop("decode and resize") - spent["decode"]
    if transform.on_pillow:
        pictures = stage("to Pillow", lambda pixels: Image.fromarray(pixels.permute(1, 2, 0).numpy()), zip(cropped))
        changed = stage("RandAugment", transform.on_pillow, zip(pictures))
        stage("from Pillow", lambda picture: np.array(picture).shape, zip(changed))
    return spent


def class_folders(shards: ShardSet, folder: Path) -> None:
    """The same photographs as the plain files that timm and torchvision read."""
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
        for title, policy in ((f"with RandAugment {POLICY}", POLICY), ("without RandAugment", None)):
            candidates = {
                "ours": ours(shards, policy),
                "timm: ImageFolder, create_transform, its loader": by_timm(files, policy),
                "torchvision reference transforms": by_torchvision(files, policy),
                "webdataset with timm's transform": by_webdataset(shards, policy),
                "bare libjpeg-turbo decode (floor)": decoding(shards),
            }
            found = rates(candidates, max(1, images // BATCH), rounds)
            print(f"\n{title}: {'images/s a core':>{58 - len(title)}}   ours is")
            for name, rate in found.items():
                print(f"  {name:<50} {rate:>8.0f}   {found['ours'] / rate:>5.2f} times as fast")
            print("  profile of ours, ms an image: " + ", ".join(f"{name} {spent:.2f}" for name, spent in profile(shards, policy).items()))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("photographs")
    parser.add_argument("--images", type=int, default=512, help="per round and candidate")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    compare(arguments.photographs, arguments.images, arguments.rounds)
