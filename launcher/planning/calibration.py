"""`bigbatch plan --calibrate`: how fast training steps, and the reading of images, really are on the machine at hand."""

import os
import statistics
import time
from collections.abc import Iterator

import torch
from accelerate.utils.memory import clear_device_cache

from data.batches import MicroBatch, MicroBatches, load_steps
from data.reading.shards import Split
from launcher.cut import unit_of_cut
from launcher.engines.optimizer import make_optimizer
from launcher.engines.out_of_memory import is_out_of_memory
from launcher.planning.gpus import CPU, kind_of
from launcher.planning.memory_model import GIB
from launcher.planning.speeds import Device, file_of_speeds, keep, measured, measured_now, read, trained
from launcher.planning.step_trace import autocast_to
from launcher.recipe_shards import open_shards
from models.build import build, compile_blocks
from models.cost import multiply_adds
from models.loss import mixed_cross_entropy
from models.prepared import prepare_model
from recipes.errors import UserError
from recipes.schema import Recipe

_SECONDS = 12.0  # for each precision, and for reading
_MOST_IMAGES = 128  # at a time
_READ_AT_ONCE = 64


def calibrate(recipe: Recipe) -> None:
    """Measure, print and keep: TFLOP/s of the recipe's model by precision, and, where it names shards, images/s a core.

    Raises:
        UserError: the model or the shards cannot be had, or not even one image fits the device.
    """
    if recipe.data.classes is None:
        raise UserError(f"recipe {recipe.name} leaves the number of classes to the shards: add data.classes=NUMBER")
    found = measured()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    name, memory = _device(device)
    kind = kind_of(name) if device.type == "cuda" else CPU
    with torch.device("meta"):
        work = 6 * multiply_adds(
            build(recipe, recipe.data.classes), recipe.input.size
        )  # a backward pass costs two forward passes
    tflops = found.devices[kind].tflops if kind in found.devices else {}
    for precision in _precisions(device):
        images, seconds = _step(recipe, device, precision)
        what = f"{trained(recipe)}, micro-batch {images}"
        figure = measured_now(work * images / seconds / 1e12, what)
        tflops.setdefault(precision, {})[trained(recipe)] = figure
        print(f"{name}, {precision}: {figure.value:.3g} TFLOP/s, {images / seconds:,.1f} images/s ({what})", flush=True)
    found.devices[kind] = Device(round(memory / GIB, 1), tflops)
    if recipe.data.path is not None:
        speed = _reading(recipe, open_shards(recipe).split("train"))
        found.images_per_core[read(recipe)] = measured_now(speed, f"{recipe.data.path} at {recipe.input.size} px")
        print(f"{read(recipe)}: {speed:,.0f} images/s in one loader process", flush=True)
    keep(found)
    print(f"kept in {file_of_speeds()}; used by: bigbatch plan {recipe.name} --gpu {kind}")


def _device(device: torch.device) -> tuple[str, int]:
    """Its name, and its memory in bytes."""
    if device.type == "cuda":
        found = torch.cuda.get_device_properties(device)
        return found.name, found.total_memory
    return f"CPU with {torch.get_num_threads()} threads", os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _precisions(device: torch.device) -> list[str]:
    if device.type == "cpu":
        return ["float32", "bf16"]
    return (
        ["float32", "bf16", "fp16"] if torch.cuda.is_bf16_supported(including_emulation=False) else ["float32", "fp16"]
    )


def _step(recipe: Recipe, device: torch.device, precision: str) -> tuple[int, float]:
    """Images of a step without accumulation, as many as fit and are done in good time, and its seconds."""
    take = _TrainingStep(recipe, device, precision)
    began, images = time.perf_counter(), take.unit
    seconds = None
    try:
        seconds = take(images)
        if seconds < _SECONDS:
            seconds = take(images)  # without what the first did once
        while 2 * images <= _MOST_IMAGES and seconds < _SECONDS / 20:
            take(2 * images)
            images, seconds = 2 * images, take(2 * images)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        clear_device_cache(garbage_collection=True)
        if seconds is None:
            raise UserError(
                f"{recipe.model.name} does not fit this device with {images} images of {recipe.input.size} px"
            ) from None
    times = []
    while time.perf_counter() - began < _SECONDS:
        times.append(take(images))
    return images, statistics.median(times or [seconds])


class _TrainingStep:
    """A step of the recipe's model and optimizer on images of noise; returns its seconds."""

    def __init__(self, recipe: Recipe, device: torch.device, precision: str):
        self.recipe, self.device, self.precision = recipe, device, precision
        prepared = prepare_model(recipe, recipe.data.classes)
        self.model, self.drop_path = prepared.module, prepared.drop_path
        self.unit = unit_of_cut(recipe, prepared.has_batch_norm)
        if recipe.engine.compile:
            compile_blocks(self.model)
        self.model.to(device, memory_format=torch.channels_last).train()
        self.optimizer = make_optimizer(self.model, recipe)
        self.scaler = torch.amp.GradScaler(device.type, enabled=precision == "fp16")

    def __call__(self, images: int) -> float:
        size = self.recipe.input.size
        pixels = torch.rand(images, 3, size, size, device=self.device)
        labels, ones = (
            torch.zeros(images, dtype=torch.int64, device=self.device),
            torch.ones(images, device=self.device),
        )
        pixels = pixels.contiguous(memory_format=torch.channels_last)
        self.drop_path.draw(0, torch.arange(images, device=self.device))
        self._finish()
        started = time.perf_counter()
        with autocast_to(self.precision, self.device.type):
            logits = self.model(pixels)
        loss = mixed_cross_entropy(logits, labels, labels, ones, ones, self.recipe.loss.smoothing).mean()
        self.scaler.scale(loss).backward()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad()
        self._finish()
        return time.perf_counter() - started

    def _finish(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()


def _reading(recipe: Recipe, split: Split) -> float:
    """Images/s of one loader process: read, decoded and augmented, as training does it."""
    count = min(_READ_AT_ONCE, len(split))
    batches: Iterator[MicroBatch] = load_steps(
        MicroBatches(split, recipe.variant(batch={"global_": count, "slices": 1, "statistics": None}), 0, count),
        range(10**6),
        1,
        workers=0,
        pin=False,
    )
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        next(batches)
        began, images = time.perf_counter(), 0
        while time.perf_counter() - began < _SECONDS:
            next(batches)
            images += count
        return images / (time.perf_counter() - began)
    finally:
        torch.set_num_threads(threads)
