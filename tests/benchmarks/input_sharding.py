"""How fast images become shards: `bigbatch shard`, webdataset's own writer in a plain loop, and decoding alone.

    python -m tests.benchmarks.input_sharding FOLDER [--before CHECKOUT] [--rounds 5]

FOLDER has a folder per class of JPEGs. All contenders read the same files, in alternating rounds. `bigbatch shard` also
decodes every image once, flushes to the disk, reads back, takes checksums and writes an index. "decoding alone" writes
nothing: libjpeg-turbo decodes each JPEG to gray at an eighth of its size, for which it reads every coded bit and
computes almost no pixels. This bounds the speed of any program that proves with libjpeg-turbo that images decode.

Each contender is a process of its own, which imports everything before its time begins; the commands are timed from
their start. Printed are medians of MB per second, and of MB per second of processor time, on which other work on the
machine has less influence.
"""

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

HERE = Path(__file__).parents[2]


def plain_loop(folder: Path, destination: Path) -> None:
    from webdataset import ShardWriter

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


def decoding_alone(folder: Path, destination: Path) -> None:
    import simplejpeg

    for path in sorted(folder.rglob("*.jpg")):
        simplejpeg.decode_jpeg(path.read_bytes(), "GRAY", min_height=1, min_width=1, min_factor=8)


def shard_one_process(folder: Path, destination: Path) -> None:
    from data.writing.sharding import shard

    shard(str(folder), destination, val_fraction=0, workers=1, progress=False)


def shard_all_cores(folder: Path, destination: Path) -> None:
    from data.writing.sharding import shard

    shard(str(folder), destination, val_fraction=0, progress=False)


def command(folder: Path, destination: Path) -> None:
    arguments = ["shard", str(folder), str(destination), "--val-fraction", "0"]
    subprocess.run([sys.executable, "-m", "launcher", *arguments], check=True, capture_output=True)


CONTENDERS: dict[str, Callable[[Path, Path], None]] = {
    "decoding alone, one process": decoding_alone,
    "webdataset's ShardWriter in a plain loop": plain_loop,
    "the same, flushed to the disk": flushed_loop,
    "bigbatch shard, one process": shard_one_process,
    "bigbatch shard, all cores": shard_all_cores,
    "bigbatch shard, all cores, as a command": command,
}
OURS = [name for name in CONTENDERS if name.startswith("bigbatch")]


def timed(name: str, folder: Path) -> None:
    """Run one contender in this process and print its seconds and processor seconds."""
    import webdataset  # noqa: F401

    import data.writing.sharding  # noqa: F401

    with tempfile.TemporaryDirectory() as scratch:
        started, used = time.perf_counter(), processor_seconds()
        CONTENDERS[name](folder, Path(scratch) / "out")
        print(json.dumps([time.perf_counter() - started, processor_seconds() - used]))


def processor_seconds() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def compare(folder: Path, before: Path | None, rounds: int) -> None:
    size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 1e6
    ways = [(name, name, HERE) for name in CONTENDERS]
    if before is not None:
        ways += [(f"before: {name}", name, before) for name in OURS]
    found: dict[str, list[tuple[float, float]]] = {label: [] for label, _, _ in ways}
    for number in range(rounds + 1):  # the first warms up
        for label, name, checkout in ways:
            arguments = [sys.executable, __file__, str(folder), "--contender", name]
            environment = {**os.environ, "PYTHONPATH": str(checkout)}
            done = subprocess.run(arguments, check=True, capture_output=True, env=environment, cwd=checkout)
            if number:
                seconds, processor = json.loads(done.stdout)
                found[label].append((size / seconds, size / processor))
    print(f"{size:.0f} MB, {rounds} rounds, load {os.getloadavg()[0]:.1f} at the end")
    print(f"{'':<50} {'MB/s':>6} {'(lowest to highest)':>20} {'MB per processor second':>25}")
    for label, rates in sorted(found.items(), key=lambda item: item[0].removeprefix("before: ")):
        speeds = [speed for speed, _ in rates]
        median, processor = statistics.median(speeds), statistics.median(rate for _, rate in rates)
        print(f"{label:<50} {median:>6.0f} {f'({min(speeds):.0f} to {max(speeds):.0f})':>20} {processor:>25.0f}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--before", type=Path, help="a checkout of earlier code, which takes its turns too")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--contender", choices=CONTENDERS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.contender:
        timed(arguments.contender, arguments.folder)
    else:
        compare(arguments.folder.resolve(), arguments.before and arguments.before.resolve(), arguments.rounds)
