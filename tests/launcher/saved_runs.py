"""A run and shards small enough to be made for each test: checkpoints of a tiny model, shards of toy images."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from data.reading.shards import ShardSet
from data.writing.sharding import shard
from launcher.checkpoints.checkpoint import TensorShard
from launcher.checkpoints.retention import Retention
from launcher.checkpoints.writer import CheckpointWriter
from launcher.runs.metadata import DatasetMetadata, ModelMetadata, RunMetadata
from launcher.runs.run_directory import RunDirectory
from recipes.load import load
from recipes.schema import Recipe

CLASSES = ("ant", "bee", "cat", "dog")
TINY = [
    "model.name=test_convnext",
    "model.drop_path=0",
    "input.size=32",
    "data.classes=null",
    "engine.precision=float32",
]


@dataclass(frozen=True)
class ToyShards:
    """Makes shards of the same images under any class names, once per session."""

    folder: Path

    def __call__(self, *classes: str) -> Path:
        out = self.folder / ("shards " + " ".join(classes))
        if out.exists():
            return out
        images, noise = self.folder / ("images " + " ".join(classes)), np.random.default_rng(0)
        for number, name in enumerate(classes):
            (images / name).mkdir(parents=True)
            for image in range(5):
                pixels = noise.integers(0, 60, (32, 32, 3)) + np.eye(3, dtype=int)[number % 3] * 120 + 20 * number
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(images / name / f"{image}.png")
        shard(str(images), out, val_fraction=0.4, workers=1, progress=False)
        return out


def tiny_model(seed: int, classes: int = len(CLASSES)) -> nn.Module:
    """A model whose predictions differ from image to image, and from seed to seed."""
    torch.manual_seed(seed)
    model = timm.create_model("test_convnext", num_classes=classes)
    nn.init.normal_(model.get_classifier().weight, std=5.0)
    return model.eval()


def make_saved_run(
    path: Path,
    shards: Path,
    steps: dict[int, tuple[float, float | None]],
    classes: tuple[str, ...] = CLASSES,
    overrides: tuple[str, ...] = (),
) -> RunDirectory:
    """A run as training leaves it, with a checkpoint at each of these steps.

    Args:
        steps: top-1 of the raw weights and of the EMA weights at each step; a run without EMA has None.
    """
    run, recipe = RunDirectory(path), load("demo", [*TINY, *overrides, f"data.path={shards}"])
    path.mkdir(parents=True)
    run.write(recipe, metadata_of(recipe, shards, classes, total_steps=max(steps)))
    writer = CheckpointWriter(run.checkpoints, Retention(last=100), 0, 1, "x", None)
    run.metrics.append("start", 0, cut="16", engine="DDP", device="CPU", precision="float32")
    for step, (raw, ema) in steps.items():
        state = [
            TensorShard("weights", name, value) for name, value in tiny_model(step, len(classes)).state_dict().items()
        ]
        if ema is not None:
            smoothed = tiny_model(1000 + step, len(classes)).state_dict()
            state += [TensorShard("ema", name, value) for name, value in smoothed.items()]
        writer.save(step, state, {"updates": step}, {}, {"identity": recipe.identity(), "dataset": "d"})
        values = {"epoch": step / 4, "loss": 1.0}
        run.metrics.append("step", step, lr=1e-3, images_per_second=1.0, data_wait=0.0, replaced=0, **values)
        accuracies = {"top1": raw, "top5": None, "ema_top1": ema, "ema_top5": None}
        run.metrics.append("evaluation", step, images=8, **values, **accuracies)
    writer.wait()
    return run


def metadata_of(recipe: Recipe, shards: Path, classes: tuple[str, ...], total_steps: int) -> RunMetadata:
    found = ShardSet.open(shards)
    dataset = DatasetMetadata(
        name="toy", digest=found.digest, train_images=12, val_images=8, classes=list(classes), upright=found.upright
    )
    return RunMetadata(
        name=recipe.name,
        recipe=recipe.name,
        identity=recipe.identity(),
        dataset=dataset,
        model=ModelMetadata(name=recipe.model.name, parameters=1000),
        steps_per_epoch=4,
        total_steps=total_steps,
    )


def write_weights(path: Path, model: nn.Module, classes: tuple[str, ...] | None = None, recipe: bool = True) -> Path:
    """A weights file with or without what `bigbatch export` writes beside the weights."""
    metadata = {"recipe": json.dumps(load("demo", TINY).to_dict())} if recipe else {}
    if classes is not None:
        metadata["classes"] = json.dumps(classes)
    save_file(model.state_dict(), path, metadata)
    return path
