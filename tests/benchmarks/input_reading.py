"""How fast encoded images come from a local disk: reads by position from the index, and whole shards in order.

    python -m tests.benchmarks.input_reading SHARDS [--rounds 9]

SHARDS is a folder that `bigbatch shard` wrote. Nothing is decoded. Every contender reads all training images once per
round, and they take turns. Printed are medians over the rounds, and ratios within a round with the middle half of the
rounds in brackets. "cached" means that the files are in the page cache, so that the program's own work is what
counts. "cold" means that the system was told to drop them before each reading; the disk's own cache keeps what it
has.
"""

import argparse
import os
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import webdataset

from data.order import shuffled
from data.reading.shards import ShardSet

CACHE = 2**30


def in_order(shards: ShardSet) -> int:
    split = shards.split("train")
    return sum(len(split.read(sample)) for sample in range(len(split)))


def at_random(shards: ShardSet) -> int:
    """Read as training does: micro-batches of the full shuffle, announced in advance."""
    split = shards.split("train")
    order = shuffled(0, 0, len(split), np.arange(len(split)))
    found = 0
    for start in range(0, len(split), 64):
        samples = order[start : start + 64].tolist()
        split.read_ahead(samples)
        found += sum(len(split.read(sample)) for sample in samples)
    return found


def by_webdataset(paths: list[Path]) -> int:
    """Read with plain webdataset from the first to the last byte, without decoding."""
    loaded = webdataset.WebDataset([str(path) for path in paths], shardshuffle=False, empty_check=False)
    return sum(len(value) for sample in loaded for name, value in sample.items() if name in ("jpg", "png"))


def bare(paths: list[Path]) -> int:
    """Read the files alone, one mebibyte at a time."""
    for path in paths:
        with path.open("rb", buffering=0) as file:
            while file.read(2**20):
                pass
    return 0


def forget(paths: list[Path]) -> None:
    for path in paths:
        with path.open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def compare(folder: Path, rounds: int) -> None:
    local = ShardSet.open(folder)
    paths = [Path(path) for path in local.split("train").shard_paths]
    images = int(local.split("train").index["size"].sum())
    with tempfile.TemporaryDirectory() as cache:
        url = f"file://{folder.resolve()}"
        ways: dict[str, Callable[[], int]] = {
            "whole shards by plain webdataset": lambda: by_webdataset(paths),
            "ours, in the order of the shards": lambda: in_order(local),
            "ours, in random order": lambda: at_random(local),
            "ours, random, as a URL (fsspec)": lambda: at_random(ShardSet.open(url)),
            "ours, random, as a URL, through its cache": lambda: at_random(ShardSet.open(url, cache, CACHE)),
            "bare files": lambda: bare(paths),
        }
        for title, cold in (("cached", False), ("cold", True)):
            found: dict[str, list[float]] = {name: [] for name in ways}
            for number in range(rounds + 1):  # the first warms up, and fills the cache
                for name, way in ways.items():
                    if cold:
                        forget([*paths, *(path for path in Path(cache).rglob("*") if path.is_file())])
                    started = time.perf_counter()
                    assert way() in (images, 0)
                    if number:
                        found[name].append(time.perf_counter() - started)
            report(title, found, images)


def report(title: str, found: dict[str, list[float]], size: int) -> None:
    print(
        f"{title}: {size / 1e6:.0f} MB of images; "
        f"load of the machine {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    )
    plain = np.array(next(iter(found.values())))
    for name, seconds in found.items():
        low, ratio, high = np.quantile(plain / np.array(seconds), (0.25, 0.5, 0.75))
        print(
            f"  {name:<44} {size / np.median(seconds) / 1e6:>7.0f} MB/s  "
            f"{ratio:>6.2f} [{low:.2f} to {high:.2f}] times webdataset's speed"
        )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--rounds", type=int, default=9)
    arguments = parser.parse_args()
    compare(arguments.shards, arguments.rounds)
