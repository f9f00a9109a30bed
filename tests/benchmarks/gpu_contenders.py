"""The training steps that `gpu_step` compares: ours, a bare loop, and the settings of timm's script."""

import itertools
import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import timm
import torch
from timm.data.loader import PrefetchLoader
from timm.loss import SoftTargetCrossEntropy
from timm.optim import create_optimizer_v2
from timm.utils import ModelEmaV3
from torch.nn import functional as F
from torch.utils.data import DataLoader

from data.batches import MicroBatch, MicroBatches
from data.loader import load_steps
from data.prefetch import prefetch_to_device
from data.reading.shards import ShardSet
from launcher.checkpoints.retention import Retention
from launcher.checkpoints.writer import CheckpointWriter
from launcher.cut import Cut
from launcher.engines.base import make_accelerator
from launcher.runs.run_directory import RunDirectory
from launcher.training.evaluate_and_save import BetweenSteps
from launcher.training.event_log import EventLog
from launcher.training.loop import Training
from launcher.training.progress import RunProgress
from launcher.training.start import make_engine
from launcher.world import this_process
from models.build import compile_blocks
from models.prepared import prepare_model
from recipes.load import load
from recipes.schedule import StepSchedule
from recipes.schema import Recipe

Step = Callable[[], object]
Contender = Callable[[], AbstractContextManager[Step]]


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
        """Images of this rank in a step."""
        return self.recipe.batch.global_ // this_process().size

    def batches(self) -> list[MicroBatch]:
        """A few micro-batches on the device."""
        dataset = MicroBatches(self.shards.split("train"), self.recipe, this_process().rank * self.size, self.size)
        return [dataset[(step, 0)].to(self.device) for step in range(4)]

    @property
    def classes(self) -> int:
        assert self.recipe.data.classes is not None
        return self.recipe.data.classes

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, dtype=torch.bfloat16)


@contextmanager
def ours(setting: Setting, *changes: str, real_loader: bool = False) -> Iterator[Step]:
    """Our step: the training loop's own, including its reports to the run directory."""
    recipe = load(setting.recipe.name, [*setting.changes, *changes])
    accelerator = make_accelerator(recipe)
    prepared = prepare_model(recipe, setting.classes)
    if recipe.engine.compile:
        compile_blocks(prepared.module)
    cut = Cut(recipe.batch.global_, accelerator.num_processes, setting.size, 1)
    engine = make_engine(recipe, prepared.module, accelerator, cut)
    schedule = StepSchedule(recipe, len(setting.shards.split("train")))
    run = RunDirectory(setting.folder)
    writer = CheckpointWriter(run.checkpoints, Retention(1), 0, 1, "benchmark", None)
    log = EventLog(run.metrics, accelerator, schedule.steps_per_epoch)
    between_steps = BetweenSteps(engine, schedule, setting.shards, writer, log, setting.workers, run)
    training = Training(engine, prepared, schedule, cut, setting.shards, between_steps, log, setting.workers)
    batches: Iterator[MicroBatch]
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
        # DeepSpeed sets it, and because of it the Accelerate of the next contender would look for other processes.
        if not this_process().is_launched:
            os.environ.pop("LOCAL_RANK", None)
        accelerator.state._reset_state(reset_partial_state=True)


@contextmanager
def bare(setting: Setting, compiled: bool) -> Iterator[Step]:
    """The loop that a careful person writes."""
    recipe, device, classes = setting.recipe, setting.device, setting.classes
    model = make_timm_model(setting)
    parameters: list[torch.Tensor] = list(model.parameters())
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
    """The step of timm's training script, with its own parts."""
    device, classes = setting.device, setting.classes
    model = make_timm_model(setting)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-4, weight_decay=0.05)
    average = ModelEmaV3(model, decay=0.9999)
    loss_function = SoftTargetCrossEntropy().to(device)
    forward = torch.compile(model) if compiled else model
    targets = [F.one_hot(batch.labels, classes).float() for batch in setting.batches()]
    loader = _Endless([(batch.pixels[: setting.size], target) for batch, target in zip(setting.batches(), targets)])
    batches = iter(PrefetchLoader(cast(DataLoader, loader), device=device, re_prob=0.25, re_mode="pixel"))

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
    """A loader that repeats a few batches; timm's `PrefetchLoader` only iterates over it."""

    def __init__(self, batches: list[tuple[torch.Tensor, torch.Tensor]]):
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        return itertools.cycle(self.batches)


def contenders(setting: Setting, with_compile: bool, everything: bool) -> Iterator[tuple[str, Contender]]:
    """Yield the title and the maker of each contender, the most important ones first."""
    yield "ours, DDP", lambda: ours(setting)
    yield "bare loop", lambda: bare(setting, compiled=False)
    yield "timm's script", lambda: timms_script(setting, compiled=False)
    if everything:
        yield "ours, ZeRO-1", lambda: ours(setting, "engine.zero=1")
        yield "ours, DDP, no EMA", lambda: ours(setting, "ema.decay=null")
        yield "ours, DDP, real loader", lambda: ours(setting, real_loader=True)
    yield "ours, DDP, again", lambda: ours(setting)
    if with_compile:  # last, because compiling takes longer than all others together
        yield "ours, DDP, compiled", lambda: ours(setting, "engine.compile=true")
        yield "bare loop, compiled", lambda: bare(setting, compiled=True)
        yield "timm's script, compiled", lambda: timms_script(setting, compiled=True)


def make_timm_model(setting: Setting) -> torch.nn.Module:
    """Return timm's own model for a recipe, on the device, channels last."""
    recipe = setting.recipe
    arguments = {"num_classes": setting.classes, "drop_path_rate": recipe.model.drop_path}
    if recipe.model.name.startswith("swin"):
        arguments["img_size"] = recipe.input.size
    model = timm.create_model(recipe.model.name, pretrained=False, **arguments)  # type: ignore[arg-type]  # model's own
    return model.to(setting.device).to(memory_format=torch.channels_last).train()
