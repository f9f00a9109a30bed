"""How fast images become shards: `bigbatch shard`, and webdataset's own writer in a plain loop.

    python -m tests.benchmarks.input_sharding FOLDER [--rounds 5]

FOLDER has a folder per class. All contenders read the same files and write tars, in alternating rounds. Ours also
decodes every image once, flushes to the disk, reads back, takes checksums and writes an index. Printed are medians.
"one process" compares like with like, "all cores" is what a user gets, and the flushed plain loop shows what the disk
allows.
"""

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path

from webdataset import ShardWriter

from data.writing.sharding import shard


def plain_loop(folder: Path, destination: Path) -> None:
    destination.mkdir()
    classes = sorted(path for path in folder.iterdir() if path.is_dir())
    images = [(path, number) for number, of_class in enumerate(classes) for path in sorted(of_class.iterdir())]
    with ShardWriter(str(destination / "train-%06d.tar"), maxsize=256 * 2**20, verbose=0) as writer:
        for number, (path, label) in enumerate(images):
            writer.write({"__key__": f"{number:08d}", "jpg": path.read_bytes(), "cls": label})


def flushed_loop(folder: Path, destination: Path) -> None:
    plain_loop(folder, destination)
    for path in destination.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())


def compare(folder: Path, rounds: int) -> None:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    ways = {
        "webdataset's ShardWriter in a plain loop": plain_loop,
        "the same, flushed to the disk": flushed_loop,
        "bigbatch shard, one process": lambda source, to: shard(
            str(source), to, val_fraction=0, workers=1, progress=False
        ),
        "bigbatch shard, all cores": lambda source, to: shard(
            str(source), to, val_fraction=0, shard_size=16 * 2**20, progress=False
        ),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):  # the first warms up
        for name, way in ways.items():
            with tempfile.TemporaryDirectory() as scratch:
                started = time.perf_counter()
                way(folder, Path(scratch) / "out")
                if number:
                    found[name].append(size / (time.perf_counter() - started) / 1e6)
                shutil.rmtree(Path(scratch) / "out")
    plain = statistics.median(found["webdataset's ShardWriter in a plain loop"])
    for name, rates in found.items():
        median = statistics.median(rates)
        print(f"{name:<42} {median:>7.0f} MB/s  {median / plain:>5.2f} of the plain loop")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    compare(arguments.folder, arguments.rounds)
