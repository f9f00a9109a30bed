"""Measures the optimizer steps to one training loss for several batch sizes, beside a prediction.

python -m tests.benchmarks.batch_size shards/digits OUT

Each run has a constant learning rate, the one of batch 64 times the square root of the ratio, and stops at the loss.
The prediction is the law of McCandlish et al., 2018 (arXiv 1812.06162): steps grow with 1 + noise scale / batch. It
uses one measured run, of batch 64: its steps and its noise scale.
"""

import argparse
import math
import subprocess
import sys
import time
from pathlib import Path

from launcher.runs.metrics import Metrics
from launcher.runs.noise_scale import recorded_estimates

BATCHES, REFERENCE, SLICE, LR = (16, 32, 64, 128, 256), 64, 8, 1e-3
LOSS, SMOOTHED_OVER = 0.5, 1024  # the mean training loss of so many images, which every run reaches
RECIPE = [
    *("model.name=test_convnext", "model.drop_path=0", "model.layer_scale=null", "engine.precision=float32"),
    *("mix.mixup=0", "mix.cutmix=0", "loss.smoothing=0", "augment.randaugment=null", "augment.erasing=0"),
    *("ema.decay=null", "optimizer.weight_decay=0", "schedule.shape=constant", "schedule.warmup_epochs=0"),
    *("schedule.epochs=100", "run.evaluate_every=1000", "run.save_every=100000"),
]


def train(shards: Path, run: Path, batch: int, seed: int) -> list[dict]:
    """Train until the loss is reached; return the records of the steps up to there."""
    changes = [f"batch.global={batch}", f"batch.slices={batch // SLICE}", f"seed={seed}"]
    changes.append(f"optimizer.lr={LR * math.sqrt(batch / REFERENCE)}")
    command = [sys.executable, "-m", "launcher", "train", "demo", "--data", shards, "--run-dir", run, *RECIPE, *changes]
    options = ["--micro-batch", min(batch // 2, 32), "--workers", 0]
    with (run.parent / f"{run.name}.log").open("w") as log:
        process = subprocess.Popen([*map(str, [*command, *options])], stdout=log, stderr=log)
    while process.poll() is None:
        time.sleep(2)
        if reached := up_to_loss(Metrics(run / "metrics.jsonl").events(), batch):
            process.terminate()
            process.wait()
            return reached
    raise RuntimeError(f"{run} ended before the loss was reached")


def up_to_loss(events: list[dict], batch: int) -> list[dict]:
    """Return the records of the steps until the mean loss of the latest images is low enough; empty before that."""
    steps, window = [event for event in events if event["event"] == "step"], max(1, SMOOTHED_OVER // batch)
    for stop in range(window, len(steps) + 1):
        if sum(step["loss"] for step in steps[stop - window : stop]) / window <= LOSS:
            return steps[:stop]
    return []


def mean(numbers: list[float]) -> float:
    return sum(numbers) / len(numbers)


def compare(found: dict[int, list[list[dict]]]) -> None:
    """Print measured and predicted steps for each batch size; `found` holds the records of one run per seed."""
    estimates = [one for steps in found[REFERENCE] for one in recorded_estimates(steps)]
    noise = mean([one.noise for one in estimates]) / mean([one.signal for one in estimates])
    reference = mean([len(steps) for steps in found[REFERENCE]])
    print(f"noise scale of batch {REFERENCE}: {noise:.0f} images")
    for batch, runs in found.items():
        steps = [len(one) for one in runs]
        predicted = reference * (1 + noise / batch) / (1 + noise / REFERENCE)
        measured = f"{mean(steps):7.1f} steps {steps}, {mean(steps) * batch:8.0f} images"
        print(f"batch {batch:4}: {measured}; predicted {predicted:7.1f} steps")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--seeds", type=int, default=2)
    arguments = parser.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    found: dict[int, list[list[dict]]] = {batch: [] for batch in BATCHES}
    for seed in range(arguments.seeds):
        for batch in (64, 16, 256, 32, 128):
            steps = train(arguments.shards, arguments.out / f"{batch}-{seed}", batch, seed)
            print(f"batch {batch} seed {seed}: {len(steps)} steps", flush=True)
            found[batch].append(steps)
    compare(found)
