"""Describes a run for ``run.json`` and for its start events: data set, model, schedule, versions, hardware."""

import hashlib
from importlib.metadata import version
from pathlib import Path
from typing import Any

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
from slurm.snapshot import PACKAGES

_LIBRARIES = ("bigbatch", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "simplejpeg")


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
        versions=library_versions(),
        weights_sha256=weights_sha256,
    )


def library_versions() -> dict[str, str]:
    """Return the versions of bigbatch and of the libraries that decide the numbers of a run, by name."""
    return {name: version(name) for name in _LIBRARIES}


def _code_digest() -> str:
    """Return a digest of bigbatch's own code, 12 hexadecimal digits, because its version does not tell edits apart."""
    digest, root = hashlib.sha256(), Path(__file__).parents[2]
    for package in PACKAGES:
        for file in sorted((root / package).rglob("*.py")):
            digest.update(str(file.relative_to(root)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


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


def describe_start(accelerator: Accelerator) -> dict[str, Any]:
    """Return what a start event says about the machine and the code.

    That is the device's name ("CPU", "NVIDIA H100 ..."), the precision of the forward pass, the versions of the
    libraries, and a digest of bigbatch's own code.
    """
    device = accelerator.device
    precision = accelerator.mixed_precision
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "precision": "float32" if precision == "no" else precision,
        "versions": library_versions(),
        "code": _code_digest(),
    }


def _multiply_adds(recipe: Recipe, classes: int) -> int | None:
    """Return the multiply-adds for one image; None for a model that cannot run on shapes alone."""
    with torch.device("meta"):
        model = build(recipe, classes)
    try:
        return multiply_adds(model, recipe.input.size)
    except Exception:  # a model may raise anything on a tensor without values, and this number is only informative
        return None
