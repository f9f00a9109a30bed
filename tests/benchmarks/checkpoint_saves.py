"""Many saves by several processes, all of which must succeed: ``python -m tests.benchmarks.checkpoint_saves``.

The ranks of a run write their parts of a checkpoint without talking to each other, over the file system alone. A race
between them would end a healthy run, and shows only once in many saves, on a busy machine. So this runs real writers
in processes of their own, which begin every save together as training does, beside processes that keep all cores
busy.
"""

import argparse
import multiprocessing
import multiprocessing.synchronize
import os
import sys
import tempfile
import time
from pathlib import Path

import torch

from launcher.checkpoints.checkpoint import TensorShard, latest_valid
from launcher.checkpoints.retention import Retention
from launcher.checkpoints.writer import CheckpointWriter
from recipes.errors import UserError

_CONTEXT = multiprocessing.get_context("forkserver")
_CHECK_EVERY = 100  # saves between two checks of the newest checkpoint's checksums


def write(folder: Path, rank: int, ranks: int, saves: int, barrier: multiprocessing.synchronize.Barrier) -> None:
    """Save `saves` times as one rank; exit with 1 at the first save that fails."""
    torch.set_num_threads(1)
    writer = CheckpointWriter(folder, Retention(last=3), rank, ranks, attempt="benchmark", resumed_step=None)
    barrier.wait()  # the main rank has made the folder
    try:
        for step in range(1, saves + 1):
            barrier.wait()
            shards = [TensorShard("weights", f"layer.{rank}", torch.full((1000,), float(step)))]
            writer.save(step, shards, {"updates": step}, {}, {"identity": "identity", "dataset": "dataset"})
            if rank == 0 and step % _CHECK_EVERY == 0:
                writer.wait()
                newest = latest_valid(folder)
                assert newest is not None and newest.step == step
                print(f"{step:,} saves by {ranks} processes", flush=True)
        writer.wait()
    except UserError as error:
        print(f"rank {rank}: {error}", flush=True)
        barrier.abort()
        sys.exit(1)


def keep_busy() -> None:
    """Compute for ever."""
    while True:
        sum(range(100_000))


def main() -> None:
    """Run the saves and print how many succeeded, in what time and beside how many busy processes."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--saves", type=int, default=10_000)
    parser.add_argument("--processes", type=int, default=4)
    parser.add_argument("--busy", type=int, default=os.cpu_count(), help="processes that keep the cores busy")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        busy = [_CONTEXT.Process(target=keep_busy, daemon=True) for _ in range(options.busy)]
        barrier = _CONTEXT.Barrier(options.processes)
        writers = [
            _CONTEXT.Process(target=write, args=(Path(folder), rank, options.processes, options.saves, barrier))
            for rank in range(options.processes)
        ]
        started = time.monotonic()
        for process in [*busy, *writers]:
            process.start()
        for process in writers:
            process.join()
        seconds = time.monotonic() - started
        for process in busy:
            process.kill()
    failed = [rank for rank, process in enumerate(writers) if process.exitcode]
    result = f"ranks {failed} failed" if failed else "none failed"
    print(
        f"{options.saves:,} saves by {options.processes} processes on {os.cpu_count()} cores beside {options.busy} "
        f"busy processes in {seconds:.0f} s: {result}"
    )
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
