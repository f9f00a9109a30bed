"""Describes a run for ``run.json`` and for its start events: data set, model, schedule, versions, hardware."""

from importlib.metadata import version

import torch
from accelerate import Accelerator
from torch import nn

from data.reading.shards import ShardSet
from launcher.runs.metadata import DatasetMetadata, ModelMetadata, RunMetadata
from launcher.runs.run_directory import RunDirectory
from launcher.runs.weights_digest import weights_digest
from models.build import build
from models.cost import multiply_adds
from recipes.schedule import StepSchedule
from recipes.schema import Recipe


def describe_run(
    recipe: Recipe, shards: ShardSet, schedule: StepSchedule, model: nn.Module, weights_sha256: str | None
) -> RunMetadata:
    """Return the contents of ``run.json``; later versions and the report read these keys."""
    return RunMetadata(
        name=recipe.name,
        recipe=recipe.name,
        identity=recipe.identity(),
        dataset=describe_dataset(recipe, shards),
        model=ModelMetadata(
            name=recipe.model.name,
            parameters=sum(parameter.numel() for parameter in model.parameters()),
            multiply_adds=_multiply_adds(recipe, len(shards.classes)),
        ),
        steps_per_epoch=schedule.steps_per_epoch,
        total_steps=schedule.total_steps,
        versions={name: version(name) for name in ("bigbatch", "torch", "timm", "accelerate")},
        weights_sha256=weights_sha256,
    )


def describe_dataset(recipe: Recipe, shards: ShardSet) -> DatasetMetadata:
    """Return what ``run.json`` says about the shards."""
    return DatasetMetadata(
        name=recipe.data.name,
        digest=shards.digest,
        train_images=len(shards.split("train")),
        val_images=len(shards.splits["val"]) if "val" in shards.splits else 0,
        classes=list(shards.classes),
    )


def initial_weights_sha256(recipe: Recipe, run: RunDirectory, resumes: bool) -> str | None:
    """Return the digest of the weights that the run began with; None if the run did not record it at its start.

    A run that resumes keeps the recorded digest, because the file may be gone or replaced by now.
    """
    if not resumes:
        return weights_digest(recipe.model.weights)
    return run.metadata().weights_sha256 if run.metadata_file.is_file() else None


def describe_hardware(accelerator: Accelerator) -> dict[str, str]:
    """Return the device's name ("CPU", "NVIDIA H100 ...") and the precision of the forward pass."""
    device = accelerator.device
    precision = accelerator.mixed_precision
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "precision": "float32" if precision == "no" else precision,
    }


def _multiply_adds(recipe: Recipe, classes: int) -> int | None:
    """Return the multiply-adds for one image; None for a model that cannot run on shapes alone."""
    with torch.device("meta"):
        model = build(recipe, classes)
    try:
        return multiply_adds(model, recipe.input.size)
    except Exception:  # a model may raise anything on a tensor without values, and this number is only informative
        return None
