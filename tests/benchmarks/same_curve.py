"""How equal the curves of one recipe are for different cuts and engines: the table of docs/measurements/exactness.md.

    python -m tests.benchmarks.same_curve SHARDS_OF_DIGITS

28 optimizer steps of the small test recipe with every ingredient on, float32, deterministic kernels. Each row
compares one run with one process that takes the whole batch at once: the largest relative difference of a step's
loss, and the largest absolute difference of a final weight and of its EMA.
"""

import argparse
import tempfile
from pathlib import Path

from launcher.checkpoints import checkpoint
from launcher.runs.run_directory import RunDirectory
from recipes.load import load
from tests.launcher.conftest import SMALL
from tests.launcher.process_group import train_group

RECIPE = [*SMALL, "schedule.epochs=2", "schedule.warmup_epochs=1", "batch.global=96", "batch.slices=6"]
CUTS = [  # processes, micro-batch, engine
    (1, 96, []),
    (1, 16, []),
    (1, 7, []),
    (2, 48, []),
    (2, 12, []),
    (3, 32, []),
    (5, 10, []),
    *[(2, 12, [f"engine.zero={stage}", f"engine.offload={place}"]) for stage in (1, 2, 3) for place in ("none", "cpu")],
    (3, 16, ["engine.zero=3"]),
]


def newest_checkpoint(run: Path) -> checkpoint.CheckpointReader:
    found = checkpoint.latest_valid(run / "checkpoints")
    assert found is not None
    return found.reader()


def differences(run: Path, reference: Path) -> tuple[float, float, float]:
    losses = [[e["loss"] for e in RunDirectory(r).metrics.events() if e["event"] == "step"] for r in (run, reference)]
    ours, expected = newest_checkpoint(run), newest_checkpoint(reference)
    largest = [
        max((ours.tensor(kind, name) - value).abs().max().item() for name, value in expected.tensors(kind).items())
        for kind in ("weights", "ema")
    ]
    return max(abs(a - b) / b for a, b in zip(*losses, strict=True)), *largest


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    shards = parser.parse_args().shards
    print("| processes | micro-batch | engine | loss, relative | weights | EMA |\n|---|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        for number, (processes, micro_batch, engine) in enumerate(CUTS):
            run = Path(folder) / str(number)
            train_group(
                processes,
                load("demo", [*RECIPE, *engine, f"data.path={shards.resolve()}"]),
                run,
                micro_batch=micro_batch,
            )
            title = next(event["engine"] for event in RunDirectory(run).metrics.events() if event["event"] == "start")
            figures = " | ".join(f"{figure:.1e}" for figure in differences(run, Path(folder) / "0"))
            print(f"| {processes} | {micro_batch} | {title} | {figures} |", flush=True)


if __name__ == "__main__":
    main()
