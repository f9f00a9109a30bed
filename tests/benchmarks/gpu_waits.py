"""Where a training step waits for the GPU: the lines that torch reports in `torch.cuda.set_sync_debug_mode("warn")`.

    python -m tests.benchmarks.gpu_waits [--small]

Expected is one wait a step, for the loss, after the update was queued (`launcher.training.loop`).
"""

import argparse
import tempfile
import warnings
from collections import Counter
from pathlib import Path

import torch

from data.reading.shards import ShardSet
from recipes.load import load
from tests.benchmarks.gpu_contenders import Setting, ours
from tests.benchmarks.gpu_step import LARGE, SMALL, changes_to, made_up_images, needs_a_gpu
from tests.benchmarks.rows import add_rows_option, write_row

_RECIPE, _STEPS = "convnext_tiny_in1k", 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tiny model and tiny images")
    add_rows_option(parser)
    chosen = parser.parse_args()
    device = needs_a_gpu()
    changes = changes_to(_RECIPE, (SMALL if chosen.small else LARGE)[_RECIPE], chosen.small)
    with tempfile.TemporaryDirectory() as scratch:
        shards = ShardSet.open(made_up_images(Path(scratch), *((40, 48) if chosen.small else (600, 375))))
        setting = Setting(load(_RECIPE, changes), changes, shards, device, 0, Path(scratch))
        with ours(setting) as step:
            for _ in range(3):  # kernels are chosen, and the optimizer's state is made
                step()
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                torch.cuda.set_sync_debug_mode("warn")
                for _ in range(_STEPS):
                    step()
                torch.cuda.set_sync_debug_mode("default")
    found = Counter(f"{each.filename}:{each.lineno}" for each in caught if "synchronizing" in str(each.message))
    print(f"{sum(found.values()) / _STEPS:g} waits a step")
    write_row(chosen.rows, {"line": "all", "waits a step": sum(found.values()) / _STEPS})
    for line, count in found.most_common():
        print(f"{count / _STEPS:g} a step at {line}")
        write_row(chosen.rows, {"line": line, "waits a step": count / _STEPS})


if __name__ == "__main__":
    main()
