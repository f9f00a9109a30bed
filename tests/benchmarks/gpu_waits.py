"""Where the host waits for the GPU: the lines that torch reports in `torch.cuda.set_sync_debug_mode("warn")`.

    python -m tests.benchmarks.gpu_waits [--small]

Expected is one wait in a training step, for the loss, after the update was queued (`launcher.training.loop`). In an
evaluation, a few are expected at its beginning and its end, and none in its batches.
"""

import argparse
import math
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from data.reading.shards import ShardSet
from launcher.engines.base import make_accelerator
from launcher.evaluation.accuracy import measure_accuracy
from launcher.evaluation.prediction_recorder import PredictionRecorder
from recipes.load import load
from tests.benchmarks.gpu_contenders import Setting, make_timm_model, ours
from tests.benchmarks.gpu_step import LARGE, SMALL, changes_to, made_up_images, needs_a_gpu
from tests.benchmarks.rows import add_rows_option, is_measured, write_row

_RECIPE, _STEPS, _BATCHES = "convnext_tiny_in1k", 4, 10


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
        recipe = setting.recipe
        with ours(setting) as step:
            for _ in range(3):  # kernels are chosen, and the optimizer's state is made
                step()
            report("a training step", _STEPS, waits(step, _STEPS), chosen.rows)
            model, recorder, train = make_timm_model(setting), PredictionRecorder(), shards.split("train")
            size = math.ceil(len(train) / _BATCHES)
            evaluation = partial(measure_accuracy, model, train, recipe, make_accelerator(recipe), size, 0, recorder)
            report("a batch of an evaluation", _BATCHES, waits(evaluation, 1), chosen.rows)


def waits(work: Callable[[], object], times: int) -> Counter[str]:
    """Return how often the host waits in this many calls of `work`, by line of code."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        for _ in range(times):
            work()
        torch.cuda.set_sync_debug_mode("default")
    return Counter(f"{each.filename}:{each.lineno}" for each in caught if "synchronizing" in str(each.message))


def report(what: str, count: int, found: Counter[str], rows: Path | None) -> None:
    """Print and write the waits of `count` steps or batches together, and those of each line."""
    if is_measured(rows, **{"in": what, "line": "all"}):
        return
    for line, times in [("all", found.total()), *found.most_common()]:
        print(f"{times / count:g} in {what} at {line}")
        write_row(rows, {"in": what, "line": line, "waits": times / count})


if __name__ == "__main__":
    main()
