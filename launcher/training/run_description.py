"""Describes a run for ``run.json`` and for its start events: data set, model, schedule, versions, hardware."""

import hashlib
from collections.abc import Iterable
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
from recipes.user_code import code_to_copy
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


def _code_digest(paths: Iterable[Path]) -> str:
    """Return a digest of the Python files that `paths` are or hold, 12 hexadecimal digits, wherever the paths are."""
    digest = hashlib.sha256()
    for path in paths:
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            digest.update(str(file.relative_to(path.parent)).encode() + b"\0" + file.read_bytes())
    return digest.hexdigest()[:12]


def describe_dataset(recipe: Recipe, shards: ShardSet) -> DatasetMetadata:
    """Return what ``run.json`` says about the shards."""
    return DatasetMetadata(
        name=recipe.data.name,
        digest=shards.digest,
        train_images=len(shards.split("train")),
        val_images=len(shards.splits["val"]) if "val" in shards.splits else 0,
        classes=list(shards.classes),
        upright=shards.upright,
    )


def initial_weights_sha256(recipe: Recipe, run: RunDirectory, resumes: bool) -> str | None:
    """Return the digest of the weights that the run began with; None if the run did not record it at its start.

    A run that resumes keeps the recorded digest, because the file may be gone or replaced by now.
    """
    if not resumes:
        return weights_digest(recipe.model.weights)
    return run.metadata().weights_sha256 if run.metadata_file.is_file() else None


def describe_start(accelerator: Accelerator, recipe: Recipe) -> dict[str, Any]:
    """Return what a start event says about the machine and the code.

    That is the device's name ("CPU", "NVIDIA H100 ..."), the precision of the forward pass, the versions of the
    libraries, and digests of bigbatch's code, whose version does not tell edits apart, and of the user's own code, if
    the recipe names any.
    """
    device = accelerator.device
    precision = accelerator.mixed_precision
    return {
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "precision": "float32" if precision == "no" else precision,
        "versions": library_versions(),
        "code": _code_digest(Path(__file__).parents[2] / package for package in PACKAGES),
    } | ({"own_code": _code_digest(code_to_copy(recipe.code.modules))} if recipe.code.modules else {})


def own_code_note(recipe: Recipe, run: RunDirectory, start: dict[str, Any]) -> str | None:
    """Return a note if the user's code is other than that of the last start of the run.

    Args:
        start: what `describe_start` returned for this start.
    """
    if "own_code" not in start:
        return None
    before = [event for event in run.metrics.events() if event["event"] == "start"]
    if not before or before[-1].get("own_code", start["own_code"]) == start["own_code"]:
        return None
    return (
        f"your own code ({', '.join(recipe.code.modules)}) has changed since the last start of this run, so its steps "
        f"may differ from here on"
    )


def _multiply_adds(recipe: Recipe, classes: int) -> int | None:
    """Return the multiply-adds for one image; None for a model that cannot run on shapes alone."""
    with torch.device("meta"):
        model = build(recipe, classes)
    try:
        return multiply_adds(model, recipe.input.size)
    except Exception:  # a model may raise anything on a tensor without values, and this number is only informative
        return None
