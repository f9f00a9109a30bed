"""`bigbatch plan --calibrate`: measure how fast this machine trains, and how fast it reads images.

A large matrix product and a large sum give the device's two rates as plain kernels reach them. Both are then divided
by one factor, so that the roofline of the recipe's own model takes as long as its measured step.
"""

import os
import statistics
import time
from collections.abc import Callable, Iterator

import torch
from accelerate.utils.memory import clear_device_cache

from data.batches import MicroBatch, MicroBatches
from data.loader import load_steps
from data.reading.shards import Split
from launcher.cut import unit_of_cut
from launcher.engines.arithmetic import set_arithmetic
from launcher.engines.optimizer import make_optimizer
from launcher.engines.out_of_memory import is_out_of_memory
from launcher.planning.gpus import CPU, kind_of
from launcher.planning.memory_model import GIB
from launcher.planning.model_profile import profile_model
from launcher.planning.speeds import (
    Device,
    Measurement,
    Rates,
    data_key,
    load_speeds,
    measured_today,
    save_speeds,
    speeds_file,
)
from launcher.planning.step_trace import autocast_to
from launcher.planning.time_model import update_seconds
from launcher.recipe_shards import open_shards
from models.build import compile_blocks
from models.loss import image_losses
from models.prepared import prepare_model
from recipes.errors import UserError
from recipes.schema import Recipe

_SECONDS = 12.0  # of measuring for each precision, and for reading
_LARGEST_MICRO_BATCH = 128
_READ_BATCH = 64
_REPETITIONS = 9  # of a plain kernel
_PLAIN_SIZES = {"cuda": (8192, 2**28), "cpu": (1024, 2**24)}  # rows of the matrices, elements of the sum


def calibrate(recipe: Recipe) -> None:
    """Measure, print and save this machine's speeds.

    These are the device's rates of arithmetic and memory by precision and, where the recipe names shards, images/s of
    one core.

    Raises:
        UserError: the model or the shards are not available, or the device's memory does not hold the smallest step.
    """
    if recipe.data.classes is None:
        raise UserError(f"recipe {recipe.name} leaves the number of classes to the shards: add data.classes=NUMBER")
    speeds = load_speeds()
    set_arithmetic()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name, memory = _name_and_memory(device)
    kind = kind_of(name) if device.type == "cuda" else CPU
    measured = Device(round(memory / GIB, 1))
    for precision in _precisions(device):
        images, seconds = _measure_step(recipe, recipe.data.classes, device, precision)
        rates = _scaled_to_step(recipe, precision, _plain_rates(device, precision), images, seconds)
        measured.rates[precision] = rates
        print(
            f"{name}, {precision}: {rates.tflops:.3g} TFLOP/s, {rates.gb_per_second:,.3g} GB/s, "
            f"{images / seconds:,.1f} images/s ({rates.source})",
            flush=True,
        )
    speeds.devices[kind] = measured
    if recipe.data.path is not None:
        rate = _measure_reading(recipe, open_shards(recipe).split("train"))
        source = measured_today(f"{recipe.data.path} at {recipe.input.size} px")
        speeds.images_per_core[data_key(recipe)] = Measurement(_rounded(rate), source)
        print(f"{data_key(recipe)}: {rate:,.0f} images/s in one loader process", flush=True)
    save_speeds(speeds)
    print(f"kept in {speeds_file()}; used by: bigbatch plan {recipe.name} --gpu {kind}")


def _plain_rates(device: torch.device, precision: str) -> Rates:
    """Return the rates that a large matrix product and a large sum in place reach."""
    dtype = {"float32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[precision]
    side, elements = _PLAIN_SIZES[device.type]
    matrix, values = torch.rand(side, side, device=device).to(dtype), torch.zeros(elements, dtype=dtype, device=device)
    product = _median_seconds(lambda: matrix @ matrix, device)
    total = _median_seconds(lambda: values.add_(1), device)
    return Rates(2 * side**3 / product / 1e12, 2 * values.nbytes / total / 1e9, "plain kernels")


def _median_seconds(run: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(_REPETITIONS):
        _wait_for(device)
        started = time.perf_counter()
        run()
        _wait_for(device)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _scaled_to_step(recipe: Recipe, precision: str, plain: Rates, images: int, seconds: float) -> Rates:
    """Return both rates, divided by the factor that makes the predicted step last as long as the measured one."""
    chosen = recipe.variant(engine={"precision": precision}, ema={"decay": None})
    profile = profile_model(chosen, precision)
    predicted = profile.usual_pass.seconds(plain, images, recipe.engine.compile)
    predicted += update_seconds(chosen, profile, plain, shards=1)
    factor = seconds / predicted
    source = measured_today(f"{recipe.model.name} at {recipe.input.size} px, micro-batch {images}")
    return Rates(_rounded(plain.tflops / factor), _rounded(plain.gb_per_second / factor), source)


def _rounded(value: float) -> float:
    return float(f"{value:.4g}")


def _wait_for(device: torch.device) -> None:
    """Wait for a GPU, whose kernels run asynchronously."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def _name_and_memory(device: torch.device) -> tuple[str, int]:
    """Return the device's name and its memory in bytes."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return properties.name, properties.total_memory
    return f"CPU with {torch.get_num_threads()} threads", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _precisions(device: torch.device) -> list[str]:
    if device.type == "cpu":
        return ["float32", "bf16"]
    # torch emulates bf16 on older GPUs, which is slower than float32.
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    return ["float32", "bf16", "fp16"] if has_bf16 else ["float32", "fp16"]


def _measure_step(recipe: Recipe, classes: int, device: torch.device, precision: str) -> tuple[int, float]:
    """Return the images of a step without accumulation and its median seconds.

    The micro-batch doubles while it fits the memory and a step is short enough to be repeated.
    """
    step = _TrainingStep(recipe, classes, device, precision)
    began, images = time.perf_counter(), step.unit
    seconds = None
    try:
        seconds = step(images)
        if seconds < _SECONDS:
            seconds = step(images)  # the first step of a size also chooses kernels, and is not representative
        while 2 * images <= _LARGEST_MICRO_BATCH and seconds < _SECONDS / 20:
            step(2 * images)
            images, seconds = 2 * images, step(2 * images)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        clear_device_cache(garbage_collection=True)
        if seconds is None:
            raise UserError(
                f"{recipe.model.name} does not fit this device with {images} images of {recipe.input.size} px: "
                f"choose a smaller input.size or another model"
            ) from None
    times = []
    while time.perf_counter() - began < _SECONDS:
        times.append(step(images))
    return images, statistics.median(times or [seconds])


class _TrainingStep:
    """A training step of the recipe's model and optimizer on random images; a call returns its seconds."""

    def __init__(self, recipe: Recipe, classes: int, device: torch.device, precision: str):
        self.recipe, self.device, self.precision = recipe, device, precision
        prepared = prepare_model(recipe, classes)
        self.model, self.drop_path = prepared.module, prepared.drop_path
        self.unit = unit_of_cut(recipe, prepared.has_batch_norm)
        if recipe.engine.compile:
            compile_blocks(self.model)
        self.model.to(device).to(memory_format=torch.channels_last).train()
        self.optimizer = make_optimizer(self.model, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def __call__(self, images: int) -> float:
        size, device = self.recipe.input.size, self.device
        pixels = torch.rand(images, 3, size, size, device=device).contiguous(memory_format=torch.channels_last)
        labels = torch.zeros(images, dtype=torch.int64, device=device)
        ones = torch.ones(images, device=device)
        self.drop_path.draw(0, torch.arange(images, device=device))
        _wait_for(device)
        started = time.perf_counter()
        with autocast_to(self.precision, device.type):
            logits = self.model(pixels)
        loss = image_losses(logits, labels, labels, ones, ones, self.recipe.loss).mean()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        _wait_for(device)
        return time.perf_counter() - started


def _measure_reading(recipe: Recipe, split: Split) -> float:
    """Return the images/s that one loader process reads, decodes and augments, as in training."""
    count = min(_READ_BATCH, len(split))
    batches: Iterator[MicroBatch] = load_steps(
        MicroBatches(split, recipe.variant(batch={"global_": count, "slices": 1, "statistics": None}), 0, count),
        range(10**6),
        1,
        workers=0,
        pin=False,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # a loader process has one
    try:
        next(batches)  # opens the shards
        began, images = time.perf_counter(), 0
        while time.perf_counter() - began < _SECONDS:
            next(batches)
            images += count
        return images / (time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
