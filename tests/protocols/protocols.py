"""The protocols of bigbatch between processes over the file system, each with its promise."""

import hashlib
import json
import os
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data.atomic_io import write_atomically
from data.reading.block_cache import BLOCK, BlockCache
from data.reading.checked_block import read_part
from data.reading.shards import ShardSet
from data.reading.staging import stage
from data.writing.sharding import shard
from data.writing.verify import verify
from launcher.checkpoints.checkpoint import TensorShard, latest_valid, read_latest, saved_steps
from launcher.checkpoints.retention import Retention
from launcher.checkpoints.writer import CheckpointWriter
from launcher.runs.metrics import Metrics
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError
from slurm.ledger import Attempt, Failure, Ledger
from tests.protocols.harness import Protocol

_STEPS = 3  # saves of one start of a training
_BLOCKS = 20  # of 1 MiB in a cache for 16
_ABOUT = {"identity": "identity", "dataset": "dataset"}


def _nothing(folder: Path) -> None:
    pass


def _inside(folder: Path, seconds: float = 0.01) -> None:
    """Be where only one process may be; an assertion fails if another one is there."""
    marker = folder / "inside"
    try:
        descriptor = os.open(marker, os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    except FileExistsError:
        raise AssertionError(f"two processes hold the lock: {marker.read_text()} and {os.getpid()}") from None
    os.write(descriptor, str(os.getpid()).encode())
    os.close(descriptor)
    time.sleep(seconds)
    marker.unlink()


# Checkpoints: every process writes its share, the main process completes them and keeps the last one.


def _save_checkpoints(world_size: int) -> Callable[[Path, int, Any], None]:
    def act(folder: Path, rank: int, barrier: Any) -> None:
        checkpoints, acknowledged = folder / "checkpoints", folder / f"acknowledged-{rank}"
        latest = latest_valid(checkpoints)
        first = latest.step if latest else 0
        barrier.wait(20)  # as training does: all know where to start before anything is removed or written
        writer = CheckpointWriter(checkpoints, Retention(last=1), rank, world_size, f"attempt{first}", first or None)
        barrier.wait(20)
        shapes = {f"p{other}": [8] for other in range(world_size)}
        for step in range(first + 1, first + 1 + _STEPS):
            values = torch.full((8,), float(step))
            writer.save(step, [TensorShard("weights", f"p{rank}", values)], {"updates": step}, shapes, _ABOUT)
            writer.wait()
            if rank == 0:  # the main process knows that the checkpoint is complete
                write_atomically(acknowledged, str(step).encode())

    return act


def _checkpoints_are_whole(world_size: int) -> Callable[[Path, bool], None]:
    def promise(folder: Path, killed: bool) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # none may look damaged
            latest = latest_valid(folder / "checkpoints")
        told = folder / "acknowledged-0"
        acknowledged = int(told.read_text()) if told.exists() else 0
        assert (latest.step if latest else 0) >= acknowledged, f"checkpoint {acknowledged} is lost"
        if latest:
            saved = latest.reader().tensors("weights")
            assert sorted(saved) == [f"p{rank}" for rank in range(world_size)]
            assert all((value == latest.step).all() for value in saved.values()), "another step's values"
        if not killed:
            left = sorted(path.name for path in (folder / "checkpoints").iterdir())
            assert len(left) == 1 and not left[0].startswith("."), f"left behind: {left}"

    return promise


# Retention: a command reads the newest checkpoint of a run that goes on saving and removes old ones.


def _save_or_read(folder: Path, rank: int, barrier: Any) -> None:
    checkpoints = folder / "checkpoints"
    if rank == 0:
        latest = latest_valid(checkpoints)
        first = latest.step if latest else 0
        writer = CheckpointWriter(checkpoints, Retention(last=1), 0, 1, f"attempt{first}", first or None)
        for step in range(first + 1, first + 1 + _STEPS):
            writer.save(
                step,
                [TensorShard("weights", "p0", torch.full((8,), float(step)))],
                {"updates": step},
                {"p0": [8]},
                _ABOUT,
            )
            writer.wait()
            if step == first + 1:
                barrier.wait(20)
        return
    barrier.wait(20)
    for _ in range(3):
        found = read_latest(checkpoints)
        assert found is not None, "there was a checkpoint, and now there is none"
        latest, saved = found
        value = saved.tensor("weights", "p0")
        assert (value == latest.step).all()


def _one_checkpoint_is_left(folder: Path, killed: bool) -> None:
    assert killed or len(saved_steps(folder / "checkpoints")) == 1


# The lock of a run directory.


def _train_alone(folder: Path, rank: int, barrier: Any) -> None:
    (folder / "run").mkdir(exist_ok=True)
    barrier.wait(20)
    run = RunDirectory(folder / "run")
    try:
        run.lock()
    except UserError as error:
        assert "trained by" in str(error)
        return
    _inside(folder)
    (folder / f"trained-{rank}").touch()


def _one_trained(folder: Path, killed: bool) -> None:
    (folder / "inside").unlink(missing_ok=True)  # of one that was killed there
    assert killed or list(folder.glob("trained-*")), "nobody could train"


# The ledger of a job: two starts of it, the older one's tasks still alive on a lost node.


def _keep_a_ledger(folder: Path, rank: int, barrier: Any) -> None:
    ledger, attempt = Ledger(folder), Attempt("7", rank)
    barrier.wait(20)
    ledger.claim(attempt)
    ledger.heartbeat()
    for number in range(3):
        ledger.log("start", attempt, number=number)
    ledger.record_failure(attempt, Failure(time.time(), rank, "node", 1, "it failed"))
    assert ledger.owner() is not None
    assert len(ledger.events_of(attempt, "start")) >= 3
    assert ledger.failures(attempt)
    assert (ledger.seconds_since_heartbeat() or 0) < 60
    (folder / f"done-{rank}").touch()


def _the_ledger_is_whole(folder: Path, killed: bool) -> None:
    ledger = Ledger(folder)
    lines = ledger.events_file.read_text().splitlines() if ledger.events_file.exists() else []
    assert len(ledger.events()) == len(lines), "a line of the ledger is torn"
    done = [int(path.name.removeprefix("done-")) for path in folder.glob("done-*")]
    for rank in done:
        assert len(ledger.events_of(Attempt("7", rank), "start")) >= 3 and ledger.failures(Attempt("7", rank))
    assert not done or ledger.owner() is not None


# The metrics of a run: the main process appends and resumes, others read.


def _keep_metrics(folder: Path, rank: int, barrier: Any) -> None:
    metrics = Metrics(folder / "metrics.jsonl")
    if rank == 0:
        metrics.truncate_after(2)
        barrier.wait(20)
        for step in range(1, 5):
            metrics.append("step", step, loss=1.0)
        metrics.truncate_after(3)
        return
    barrier.wait(20)
    for _ in range(4):
        steps = [event["step"] for event in metrics.events()]
        assert steps == sorted(steps) or steps[-1] <= 4


def _metrics_are_readable(folder: Path, killed: bool) -> None:
    events = Metrics(folder / "metrics.jsonl").events()
    assert killed or [event["step"] for event in events][-3:] == [1, 2, 3]


# The cache of blocks of remote shards, shared by the processes of a node.


def _contents(block: int) -> bytes:
    return bytes([block]) * BLOCK


def _read_blocks(folder: Path, rank: int, barrier: Any) -> None:
    cache = BlockCache(folder / "cache", 16 * BLOCK, "version")
    barrier.wait(20)
    for block in ((rank * 7 + number) % _BLOCKS for number in range(_BLOCKS)):
        found = cache.read("shard.tar", block, 5, 9, lambda block=block: _contents(block))
        assert found == _contents(block)[5:9]
    whole = cache.whole_file("index.npy", hashlib.sha256(b"index").hexdigest(), lambda: b"index")
    assert whole.read_bytes() == b"index"


def _the_cache_is_whole(folder: Path, killed: bool) -> None:
    blocks = [path for path in (folder / "cache" / "blocks").iterdir() if not path.name.endswith(".partial")]
    for path in blocks:
        with path.open("rb") as stream:
            found = read_part(stream.fileno(), 0, 2 * BLOCK)
        assert found is not None and len(found) == BLOCK and len(set(found[:: BLOCK // 8])) == 1
    assert killed or len(blocks) <= 17, f"{len(blocks)} blocks in a cache for 16"


# Staging: the shards of a data set are copied once to the disk of a node.


def _make_images(folder: Path) -> None:
    random = np.random.default_rng(0)
    for name in ("cat", "dog"):
        (folder / "images" / name).mkdir(parents=True)
        for number in range(3):
            pixels = random.integers(0, 255, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / "images" / name / f"{number}.png")


def _make_shards(folder: Path) -> None:
    _make_images(folder)
    shard(str(folder / "images"), folder / "shards", val_fraction=0.4, workers=1, progress=False)


def _stage(folder: Path, rank: int, barrier: Any) -> None:
    barrier.wait(20)
    staged = stage(folder / "shards", folder / "disk")
    assert ShardSet.open(staged).digest == ShardSet.open(folder / "shards").digest


def _the_copy_is_whole(folder: Path, killed: bool) -> None:
    if killed:
        return
    (staged,) = (folder / "disk").iterdir()
    assert not verify(staged, progress=False, workers=1)
    assert not list(staged.glob("*.partial"))


# The work folder of `bigbatch shard`: two commands for one destination.


def _shard(folder: Path, rank: int, barrier: Any) -> None:
    barrier.wait(20)
    try:
        shard(str(folder / "images"), folder / "shards", val_fraction=0.4, workers=1, progress=False)
    except UserError as error:
        assert "another `bigbatch shard` is writing" in str(error), str(error)


def _the_shards_are_those_of_one_command(folder: Path, killed: bool) -> None:
    if killed:
        return
    assert not verify(folder / "shards", progress=False, workers=1)
    left = sorted(path.name for path in (folder / "shards").iterdir())
    records, shards = (
        ["_info.json", "manifest.json"],
        ["train-000000.tar", "train.index.npy", "val-000000.tar", "val.index.npy"],
    )
    assert left == [*records, *shards], left
    manifest = json.loads((folder / "shards" / "manifest.json").read_text())
    assert [split["samples"] for split in manifest["splits"].values()] == [4, 2]


def protocols() -> list[Protocol]:
    """Return every protocol, with each number of processes that it is tried with."""
    found = []
    for count in (2, 3, 4):
        name = f"checkpoint of {count} processes"
        found.append(Protocol(name, count, _nothing, _save_checkpoints(count), _checkpoints_are_whole(count)))
    for count in (2, 3):
        found.append(Protocol(f"run lock of {count} processes", count, _nothing, _train_alone, _one_trained))
        found.append(Protocol(f"ledger of {count} starts", count, _nothing, _keep_a_ledger, _the_ledger_is_whole))
        found.append(Protocol(f"staging by {count} processes", count, _make_shards, _stage, _the_copy_is_whole))
    found += [
        Protocol("retention beside a reader", 2, _nothing, _save_or_read, _one_checkpoint_is_left),
        Protocol("metrics beside a reader", 2, _nothing, _keep_metrics, _metrics_are_readable),
        Protocol("block cache of 2 processes", 2, _nothing, _read_blocks, _the_cache_is_whole),
        Protocol("work folder of 2 commands", 2, _make_images, _shard, _the_shards_are_those_of_one_command),
    ]
    return found
