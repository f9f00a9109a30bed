"""A training step on a GPU: ours, a bare loop and timm's script.

    python -m tests.benchmarks.gpu_step [--minutes 7]        # on one GPU
    python -m tests.benchmarks.gpu_step --small [--compile]  # on a CPU: exercises everything, at sizes that say little

One process, one micro-batch per step, the whole recipe: mixing, erasing, stochastic depth, label smoothing, AdamW,
EMA. The contenders are in `gpu_contenders`:

- ours: the training loop's own step, under DDP and ZeRO-1, with `engine.compile`, and without the EMA.
- bare loop: channels last, bf16 autocast, fused AdamW, the EMA by one foreach operation, `torch.compile` of the whole
  model. It mixes on the device, does not erase, checks nothing and logs nothing.
- timm's script: the device side of its loader (normalise, erase), SoftTargetCrossEntropy, the AdamW of
  create_optimizer_v2, ModelEmaV3, `--amp --amp-dtype bfloat16 --channels-last`, with and without `--torchcompile`.
  Its images come mixed, because timm's workers mix them.

All read the same micro-batches from the device; "real loader" is ours with images decoded meanwhile. Each figure is
the median over blocks of steps, with the first and third quartile. The first contender is measured again before those
that are compiled, to show whether the machine stayed the same. A contender that fails does not stop the others. Those
for which no time is left are named, and the exit code is then 3. With `--rows` the next start measures only what the
file lacks. The chip's rate is that of multiplying 8192 × 8192 matrices in bf16.
"""

import argparse
import gc
import statistics
import sys
import tempfile
import time
import traceback
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from torch import distributed

from data.reading.shards import ShardSet
from data.writing.sharding import shard
from launcher.workers import default_workers
from models.build import build
from models.cost import multiply_adds
from recipes.load import load
from tests.benchmarks.gpu_contenders import Setting, Step, contenders
from tests.benchmarks.rows import LEFT_OUT, add_rows_option, is_measured, write_row

LARGE = {  # recipe: images of the micro-batch
    "convnext_tiny_in1k": 128,
    "resnet50_in1k_modern": 128,
    "convnext_base_in1k": 128,
    "convnext_xlarge_in22k": 32,
    "swin_tiny_in1k": 128,
}
SMALL = {"convnext_tiny_in1k": 8, "resnet50_in1k_modern": 8}
SMALL_CHANGES = {
    "convnext_tiny_in1k": ["model.name=test_convnext", "input.size=32"],
    "resnet50_in1k_modern": ["model.name=test_resnet", "input.size=32"],
}
WARM_STEPS, BLOCKS = 5, 5


def measure(step: Step, images: int, device: torch.device, seconds: float) -> dict[str, float]:
    """Return images per second (median and quartiles over blocks of steps) and torch's peak memory in GiB."""
    for _ in range(WARM_STEPS):
        step()
    wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    step()
    wait(device)
    took = torch.tensor(time.perf_counter() - started, device=device)
    if distributed.is_initialized():
        distributed.broadcast(took, 0)  # all ranks take the same number of steps
    steps = max(1, int(seconds / BLOCKS / took.item()))
    rates = []
    for _ in range(BLOCKS):
        started = time.perf_counter()
        for _ in range(steps):
            step()
        wait(device)
        rates.append(steps * images / (time.perf_counter() - started))
    quartiles = statistics.quantiles(rates, n=4)
    peak = torch.cuda.max_memory_allocated() / 2**30 if device.type == "cuda" else float("nan")
    return {"images_per_second": statistics.median(rates), "from": quartiles[0], "to": quartiles[2], "peak_gib": peak}


def wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def needs_a_gpu() -> torch.device:
    """Return the GPU; exit where there is none."""
    if not torch.cuda.is_available():
        sys.exit("this needs a GPU")
    return torch.device("cuda")


def matrix_rate(device: torch.device, side: int) -> float:
    """Return the FLOP/s of multiplying two square bf16 matrices, the best of five blocks."""
    a, b = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    best = 0.0
    for _ in range(5):
        a @ b
        wait(device)
        started = time.perf_counter()
        for _ in range(10):
            a @ b
        wait(device)
        best = max(best, 10 * 2 * side**3 / (time.perf_counter() - started))
    return best


def made_up_photograph(generator: np.random.Generator, side: int) -> Image.Image:
    """Return smooth shapes and grain, `side` pixels high, whose size as JPEG and decoding time are realistic."""
    shapes = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8))
    smooth = shapes.resize((side * 4 // 3, side), Image.Resampling.BICUBIC)
    grain = generator.normal(0, 8, (side, side * 4 // 3, 3))
    return Image.fromarray(np.clip(np.asarray(smooth) + grain, 0, 255).astype(np.uint8))


def made_up_images(folder: Path, count: int, side: int) -> Path:
    """Write shards of `made_up_photograph`s and return their folder."""
    generator = np.random.default_rng(0)
    for number in range(count):
        path = folder / "pictures" / f"class {number % 4}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        made_up_photograph(generator, side).save(path, quality=92)
    shard(str(folder / "pictures"), folder / "shards", progress=False)
    return folder / "shards"


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(LARGE), choices=list(LARGE))
    parser.add_argument("--seconds", type=float, default=4.0, help="time to measure each contender")
    parser.add_argument("--minutes", type=float, default=7.0, help="time after which no other contender starts")
    parser.add_argument("--shards", type=Path, help="images to train on; made up if not given")
    parser.add_argument("--small", action="store_true", help="tiny models and images")
    parser.add_argument("--compile", action="store_true", help="with --small: compile too, minutes on a CPU")
    add_rows_option(parser)
    return parser.parse_args(arguments)


def changes_to(name: str, images: int, small: bool) -> list[str]:
    """Return what the benchmark changes in a recipe: one micro-batch of `images` per step, bf16, AdamW and an EMA."""
    return [
        f"batch.global={images}",
        "batch.slices=1",
        "batch.statistics=null",
        "schedule.warmup_epochs=0",
        *(SMALL_CHANGES[name] if small else []),
        "ema.decay=0.9999",
        "optimizer.name=adamw",
        "optimizer.lr=1e-4",
        "engine.precision=bf16",
        "engine.zero=0",
        "engine.offload=none",
        "engine.checkpoint_activations=false",
    ]


def main(arguments: list[str] | None = None) -> int:
    """Measure, print and write one row of figures per contender and model.

    Returns:
        the exit code: 1 if a contender failed, `LEFT_OUT` if no time was left for one, else 0.
    """
    chosen = parsed(arguments)
    ends = time.monotonic() + 60 * chosen.minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not chosen.small:
        sys.exit("there is no GPU: --small runs everything at sizes for a CPU")
    rate = matrix_rate(device, 512 if chosen.small else 8192)
    chip = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    print(f"{chip}, torch {torch.__version__}, timm {timm.__version__}")
    print(f"matrix products in bf16: {rate / 1e12:.3g} TFLOP/s")
    sizes = {name: images for name, images in (SMALL if chosen.small else LARGE).items() if name in chosen.recipes}
    failed, left_out = False, False
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shards = ShardSet.open(chosen.shards or made_up_images(folder, *((40, 48) if chosen.small else (600, 375))))
        for number, (name, images) in enumerate(sizes.items()):
            changes = changes_to(name, images, chosen.small)
            recipe = load(name, changes)
            setting = Setting(recipe, changes, shards, device, default_workers() if not chosen.small else 0, folder)
            with torch.device("meta"):
                cost = 6 * multiply_adds(build(recipe, setting.classes), recipe.input.size)
            for title, make in contenders(setting, chosen.compile or not chosen.small, everything=not number):
                if is_measured(chosen.rows, model=recipe.model.name, contender=title):
                    continue
                if time.monotonic() > ends:
                    print(f"{recipe.model.name}, {title}: not measured, no time left")
                    left_out = True
                    continue
                try:
                    with make() as step:
                        row: dict = measure(step, images, device, chosen.seconds)
                except Exception:
                    print(f"{recipe.model.name}, {title}: failed\n{traceback.format_exc()}", flush=True)
                    failed = True
                    continue
                finally:
                    gc.collect()
                    if device.type == "cuda":
                        torch.cuda.empty_cache()
                row = {"model": recipe.model.name, "contender": title, "micro_batch": images} | row
                row["utilisation"] = row["images_per_second"] * cost / rate
                print(shown(row), flush=True)
                write_row(chosen.rows, row)
    return 1 if failed else LEFT_OUT if left_out else 0


def shown(row: dict) -> str:
    return (
        f"{row['model']} x {row['micro_batch']}, {row['contender']}: {row['images_per_second']:,.1f} images/s "
        f"({row['from']:,.1f} to {row['to']:,.1f}), peak {row['peak_gib']:.2f} GiB, "
        f"{row['utilisation']:.1%} of the matrix rate"
    )


if __name__ == "__main__":
    sys.exit(main())
