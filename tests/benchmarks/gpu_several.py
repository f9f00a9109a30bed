"""Training steps on 1, 2, 4, ... GPUs of this machine: what the all-reduce costs under DDP and ZeRO.

    python -m tests.benchmarks.gpu_several [--small]

Every GPU has the same micro-batch, so the ideal is as many times the images per second of one GPU. The steps are those
of `gpu_contenders.ours`.
"""

import argparse
import sys
import tempfile
from pathlib import Path

import torch

from data.reading.shards import ShardSet
from launcher.processes import run_processes, stop_with_parent
from launcher.world import this_process
from recipes.load import load
from tests.benchmarks.gpu_contenders import Setting, ours
from tests.benchmarks.gpu_step import LARGE, SMALL, changes_to, made_up_images, measure, needs_a_gpu
from tests.benchmarks.rows import LEFT_OUT, add_rows_option, is_measured, write_row

_RECIPE = "convnext_tiny_in1k"
_ENGINES = {"DDP": [], "ZeRO-1": ["engine.zero=1"], "ZeRO-3": ["engine.zero=3"], "compiled": ["engine.compile=true"]}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model and tiny images, and nothing compiled")
    parser.add_argument("--seconds", type=float, default=4.0, help="time to measure each")
    add_rows_option(parser)
    chosen = parser.parse_args()
    needs_a_gpu()
    if this_process().is_launched:
        stop_with_parent()
        measure_this_rank(chosen)
    elif (count := torch.cuda.device_count()) == 1:
        print("nothing to measure: there is one GPU")
        sys.exit(LEFT_OUT)
    else:
        for ranks in (number for number in (1, 2, 4, 8, 16) if number <= count):
            if code := run_processes("tests.benchmarks.gpu_several", sys.argv[1:], ranks):
                sys.exit(code)


def measure_this_rank(chosen: argparse.Namespace) -> None:
    """Measure every engine together with the other ranks; rank 0 prints and writes."""
    world, images = this_process(), (SMALL if chosen.small else LARGE)[_RECIPE]
    changes = changes_to(_RECIPE, images * world.size, chosen.small)
    device = torch.device("cuda", world.local_rank)
    torch.cuda.set_device(device)
    with tempfile.TemporaryDirectory() as scratch:
        shards = ShardSet.open(made_up_images(Path(scratch), *((40, 48) if chosen.small else (600, 375))))
        setting = Setting(load(_RECIPE, changes), changes, shards, device, 0, Path(scratch))
        for engine, more in _ENGINES.items():
            # No rank can see a row of this engine before all of them have measured it.
            if (chosen.small and engine == "compiled") or is_measured(chosen.rows, GPUs=world.size, engine=engine):
                continue
            with ours(setting, *more) as step:
                found = measure(step, images * world.size, device, chosen.seconds)
            if world.is_main:
                row = {"GPUs": world.size, "engine": engine, **found}
                print(row, flush=True)
                write_row(chosen.rows, row)


if __name__ == "__main__":
    main()
