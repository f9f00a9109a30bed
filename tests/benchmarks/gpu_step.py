"""A training step: ours against a bare loop and against timm's script, in images a second, memory and share of the chip's rate.

    python -m tests.benchmarks.gpu_step [--minutes 7]       # on one GPU
    python -m tests.benchmarks.gpu_step --small [--compile]  # on a CPU: everything is exercised, at sizes that say little

One process, one micro-batch a step, the whole recipe: mixing, erasing, stochastic depth, label smoothing, AdamW, average of the weights.

- ours: `launcher.training.loop`'s own step, under DDP and ZeRO-1, with engine.compile and without the average.
- bare loop: what a careful person writes: channels last, bf16 autocast, fused AdamW, the average by one foreach operation, whole-model
  torch.compile; mixing on the device, no erasing, nothing checked or logged.
- timm's script: its loader's device side (normalise, erase), SoftTargetCrossEntropy, create_optimizer_v2's AdamW, ModelEmaV3,
  `--amp --amp-dtype bfloat16 --channels-last` with and without `--torchcompile`. Its images come mixed, as its workers mix them.

All read the same micro-batches from the device; "real loader" is ours with photographs decoded meanwhile. Each figure is the median over
blocks of steps with the spread from the first to the third quartile; the first contender is measured again at the end of each model,
to see whether the machine stayed the same. Contenders for which no time is left are named. Rates of the chip: 8192 x 8192 matrices.
"""

import argparse
import gc
import itertools
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from timm.data.loader import PrefetchLoader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch.nn import functional as F

from data.batches import MicroBatch, MicroBatches, load_steps
from data.prefetch import prefetch_to_device
from data.reading.shards import ShardSet
from data.writing.sharding import shard
from launcher.cut import Cut
from launcher.engines.base import make_accelerator
from launcher.runs.run_directory import RunDirectory
from launcher.training.loop import Training
from launcher.training.progress import RunProgress
from launcher.training.train import make_engine
from launcher.workers import default_workers
from models import batch_norm, stochastic_depth
from models.build import build, compile_blocks
from models.cost import multiply_adds
from recipes.load import load
from recipes.schedule import StepSchedule
from recipes.schema import Recipe

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
Step = Callable[[], object]


@dataclass
class Setting:
    """What all contenders of a model share."""

    recipe: Recipe
    changes: list[str]  # what this benchmark changes in the recipe of that name
    shards: ShardSet
    device: torch.device
    workers: int
    folder: Path

    @property
    def size(self) -> int:
        return self.recipe.batch.global_

    def batches(self) -> list[MicroBatch]:
        """A few micro-batches on the device."""
        dataset = MicroBatches(self.shards.split("train"), self.recipe, 0, self.size)
        return [dataset[(step, 0)].to(self.device) for step in range(4)]

    def autocast(self):
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


@contextmanager
def ours(setting: Setting, *changes: str, real_loader: bool = False) -> Iterator[Step]:
    """The step of `launcher.training.loop`, reports to the run directory included."""
    recipe = load(setting.recipe.name, [*setting.changes, *changes])
    accelerator = make_accelerator(recipe)
    model = build(recipe, recipe.data.classes)
    depth, averages = (
        stochastic_depth.attach(model, recipe.seed),
        batch_norm.attach(model, recipe.batch.statistics_size),
    )
    if recipe.engine.compile:
        compile_blocks(model)
    cut = Cut(setting.size, 1, setting.size, 1)
    engine = make_engine(recipe, model, accelerator, cut)
    schedule = StepSchedule(recipe, len(setting.shards.split("train")))
    training = Training(
        engine, depth, averages, schedule, cut, setting.shards, RunDirectory(setting.folder), None, setting.workers
    )
    if real_loader:
        dataset = MicroBatches(setting.shards.split("train"), recipe, 0, setting.size)
        loaded = load_steps(dataset, range(schedule.total_steps), 1, setting.workers, pin=setting.device.type == "cuda")
        batches = prefetch_to_device(loaded, setting.device)
    else:
        batches = itertools.cycle(setting.batches())
    engine.module.train()
    progress, steps = RunProgress(schedule.total_steps, 0, visible=False), itertools.count()
    try:
        yield lambda: training._step(next(steps), batches, progress, False)
    finally:
        engine.close()
        os.environ.pop(
            "LOCAL_RANK", None
        )  # DeepSpeed wants it; the next contender's Accelerate would look for other processes
        accelerator.state._reset_state(reset_partial_state=True)


@contextmanager
def bare(setting: Setting, compiled: bool) -> Iterator[Step]:
    recipe, device = setting.recipe, setting.device
    classes = recipe.data.classes
    model = make_timm_model(recipe).to(device, memory_format=torch.channels_last).train()
    parameters = [parameter for parameter in model.parameters()]
    average = [parameter.detach().clone() for parameter in parameters]
    decayed = [parameter for parameter in parameters if parameter.ndim > 1]
    others = [parameter for parameter in parameters if parameter.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=1e-4, fused=True)
    forward = torch.compile(model) if compiled else model
    mean = torch.tensor(recipe.input.mean, device=device).mul(255).view(1, 3, 1, 1)
    std = torch.tensor(recipe.input.std, device=device).mul(255).view(1, 3, 1, 1)
    batches, generator = itertools.cycle(setting.batches()), np.random.default_rng(0)

    def step() -> None:
        batch, lam = next(batches), float(generator.beta(0.8, 0.8))
        images = batch.pixels[: setting.size].float().sub_(mean).div_(std)
        images = images.lerp(images.flip(0), 1 - lam)
        target = F.one_hot(batch.labels, classes).float()
        target = target.lerp(target.flip(0), 1 - lam) * 0.9 + 0.1 / classes
        with setting.autocast():
            logits = forward(images)
        (-target * logits.float().log_softmax(-1)).sum(-1).mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        with torch.no_grad():
            torch._foreach_lerp_(average, parameters, 1e-4)

    yield step


@contextmanager
def timms_script(setting: Setting, compiled: bool) -> Iterator[Step]:
    recipe, device = setting.recipe, setting.device
    classes = recipe.data.classes
    model = make_timm_model(recipe).to(device, memory_format=torch.channels_last).train()
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05)
    average = ModelEmaV3(model, decay=0.9999)
    loss_function = SoftTargetCrossEntropy().to(device)
    forward = torch.compile(model) if compiled else model
    targets = [F.one_hot(batch.labels, classes).float() for batch in setting.batches()]
    loader = _Endless([(batch.pixels[: setting.size], target) for batch, target in zip(setting.batches(), targets)])
    batches = iter(PrefetchLoader(loader, device=device, re_prob=0.25, re_mode="pixel"))

    def step() -> None:
        images, target = next(batches)
        with setting.autocast():
            loss = loss_function(forward(images.contiguous(memory_format=torch.channels_last)), target)
        loss.backward()
        optimizer.step()
        average.update(model)
        optimizer.zero_grad()

    yield step


class _Endless:
    def __init__(self, batches: list):
        self.batches = batches

    def __iter__(self):
        return itertools.cycle(self.batches)


def contenders(setting: Setting, with_compile: bool, everything: bool):
    """Title and what makes it, in the order of what matters most."""
    yield "ours, DDP", lambda: ours(setting)
    yield "bare loop", lambda: bare(setting, compiled=False)
    yield "timm's script", lambda: timms_script(setting, compiled=False)
    if with_compile:
        yield "ours, DDP, compiled", lambda: ours(setting, "engine.compile=true")
        yield "bare loop, compiled", lambda: bare(setting, compiled=True)
        yield "timm's script, compiled", lambda: timms_script(setting, compiled=True)
    if everything:
        yield "ours, ZeRO-1", lambda: ours(setting, "engine.zero=1")
        yield "ours, DDP, no average", lambda: ours(setting, "ema.decay=null")
        yield "ours, DDP, real loader", lambda: ours(setting, real_loader=True)
    yield "ours, DDP, again", lambda: ours(setting)


def make_timm_model(recipe: Recipe) -> torch.nn.Module:
    options = {"img_size": recipe.input.size} if recipe.model.name.startswith("swin") else {}
    return timm.create_model(
        recipe.model.name, num_classes=recipe.data.classes, drop_path_rate=recipe.model.drop_path, **options
    )


def measure(step: Step, images: int, device: torch.device, seconds: float) -> dict[str, float]:
    """Images a second: median and quartiles over blocks of steps; peak of what torch allocated, in GiB."""
    for _ in range(WARM_STEPS):
        step()
    wait(device)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    started = time.perf_counter()
    step()
    wait(device)
    steps = max(1, int(seconds / BLOCKS / (time.perf_counter() - started)))
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


def matrix_rate(device: torch.device, side: int) -> float:
    """bf16 FLOP/s of multiplying two square matrices, the best of five blocks."""
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


def photographs(folder: Path, count: int, side: int) -> Path:
    """Shards of made-up photographs: smooth shapes and grain, so that they weigh and decode like real ones."""
    generator = np.random.default_rng(0)
    for number in range(count):
        coarse = Image.fromarray(generator.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            (side * 4 // 3, side), Image.Resampling.BICUBIC
        )
        grain = generator.normal(0, 8, (side, side * 4 // 3, 3))
        pixels = np.clip(np.asarray(coarse) + grain, 0, 255).astype(np.uint8)
        path = folder / "pictures" / f"class {number % 4}" / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path, quality=92)
    shard(str(folder / "pictures"), folder / "shards", progress=False)
    return folder / "shards"


def main(arguments: list[str] | None = None) -> list[dict]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--recipes", nargs="+", default=list(LARGE), choices=list(LARGE))
    parser.add_argument("--seconds", type=float, default=4.0, help="of measuring for each contender")
    parser.add_argument("--minutes", type=float, default=7.0, help="after which no other contender is begun")
    parser.add_argument("--shards", type=Path, help="photographs to train on; made up if not given")
    parser.add_argument("--small", action="store_true", help="tiny models and images")
    parser.add_argument(
        "--compile", action="store_true", help="with --small: compile too, which takes minutes on a CPU"
    )
    parser.add_argument("--json", type=Path, help="also write the figures there")
    chosen = parser.parse_args(arguments)
    ends = time.monotonic() + 60 * chosen.minutes
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not chosen.small:
        sys.exit("there is no GPU: --small runs everything at sizes for a CPU")
    rate = matrix_rate(device, 512 if chosen.small else 8192)
    print(
        f"{torch.cuda.get_device_name() if device.type == 'cuda' else 'CPU'}, torch {torch.__version__}, timm {timm.__version__}"
    )
    print(f"matrix products in bf16: {rate / 1e12:.3g} TFLOP/s")
    rows = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        shards = ShardSet.open(chosen.shards or photographs(folder, *((40, 48) if chosen.small else (600, 375))))
        if chosen.small:
            chosen.recipes = [recipe for recipe in chosen.recipes if recipe in SMALL]
        for number, name in enumerate(chosen.recipes):
            images = (SMALL if chosen.small else LARGE)[name]
            changes = [
                f"batch.global={images}",
                "batch.slices=1",
                "batch.statistics=null",
                "schedule.warmup_epochs=0",
                "engine.precision=bf16",
            ]
            changes += [
                *(SMALL_CHANGES[name] if chosen.small else []),
                "ema.decay=0.9999",
                "optimizer.name=adamw",
                "optimizer.lr=1e-4",
            ]
            changes += ["engine.zero=0", "engine.offload=none", "engine.checkpoint_activations=false"]
            recipe = load(name, changes)
            with torch.device("meta"):
                cost = 6 * multiply_adds(build(recipe, recipe.data.classes), recipe.input.size)
            setting = Setting(recipe, changes, shards, device, default_workers() if not chosen.small else 0, folder)
            for title, make in contenders(setting, chosen.compile or not chosen.small, everything=number == 0):
                if time.monotonic() > ends:
                    print(f"{recipe.model.name}, {title}: not measured, no time left")
                    continue
                with make() as step:
                    row = measure(step, images, device, chosen.seconds)
                gc.collect()
                if device.type == "cuda":
                    torch.cuda.empty_cache()
                row |= {"model": recipe.model.name, "contender": title, "micro_batch": images}
                row["utilisation"] = row["images_per_second"] * cost / rate
                rows.append(row)
                print(
                    f"{row['model']} x {images}, {title}: {row['images_per_second']:,.1f} images/s ({row['from']:,.1f} to {row['to']:,.1f}), "
                    f"peak {row['peak_gib']:.2f} GiB, {row['utilisation']:.1%} of the matrix rate",
                    flush=True,
                )
    if chosen.json:
        chosen.json.write_text(json.dumps(rows, indent=1))
    return rows


if __name__ == "__main__":
    main()
