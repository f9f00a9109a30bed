"""Weights by what a user calls them: a run, a file, or timm's pretrained ones; and the way out, to a safetensors file."""

import json
from collections.abc import Callable
from pathlib import Path

import safetensors
import safetensors.torch
from torch import Tensor, nn

from data.atomic_io import replacing
from launcher.checkpoints import checkpoint
from launcher.engines.base import BUFFERS, BUFFERS_EMA, WEIGHTS
from launcher.engines.optimizer import EMA
from launcher.runs.run_directory import RunDirectory
from models.pretrained import timm_pretrained
from models.weights import fit_weights, is_hub_folder, read_weights
from recipes.errors import UserError
from recipes.load import load, override, validate
from recipes.schema import Recipe


def load_weights(model: nn.Module, recipe: Recipe, say: Callable[[str], None] = print) -> list[str]:
    """Load what `model.weights` names into the model; return a note for each thing that was not loaded.

    Raises:
        UserError: it cannot be found or does not fit.
    """
    origin = recipe.model.weights
    if origin == "timm":
        weights = timm_pretrained(recipe.model.name, say)
    elif Path(origin).is_dir() and not is_hub_folder(Path(origin)):
        weights = run_weights(RunDirectory(Path(origin)), averaged=True)
    else:
        weights = read_weights(Path(origin), recipe.model.weights_key)
    return fit_weights(model, weights, origin)


def run_weights(run: RunDirectory, averaged: bool, best: bool = False) -> dict[str, Tensor]:
    """The weights of a run's checkpoint under timm's names: averaged ones if asked for and the run has them, else raw.

    Args:
        best: of the checkpoint of the best evaluation instead of the newest.

    Raises:
        UserError: there is no run, or it has no such whole checkpoint.
    """
    run.recipe()
    saved = (_best(run) if best else _newest(run)).reader()
    weights = saved.tensors(WEIGHTS) | saved.tensors(BUFFERS)
    if averaged:
        weights |= saved.tensors(EMA) | saved.tensors(BUFFERS_EMA)
    return weights


def _newest(run: RunDirectory) -> checkpoint.Checkpoint:
    newest = checkpoint.latest_valid(run.checkpoints)
    if newest is None:
        raise UserError(f"{run.path} has no checkpoint yet: train it first")
    return newest


def _best(run: RunDirectory) -> checkpoint.Checkpoint:
    best = run.metrics.best()
    if best is None:
        raise UserError(f"{run.path} was not evaluated yet, so no checkpoint is the best: leave --best out")
    return checkpoint.open_checkpoint(checkpoint.checkpoint_path(run.checkpoints, best.step))


def export(run_path: Path, destination: Path, averaged: bool, best: bool = False) -> None:
    """Write a run's weights as one safetensors file that timm's model of that name loads strictly.

    Recipe and classes go along in the file's metadata, so that `bigbatch evaluate` needs nothing else.

    Raises:
        UserError: no such run, no checkpoint, the file's name says another format, or it cannot be written.
    """
    if destination.suffix != ".safetensors":
        name = destination.with_suffix(".safetensors")
        raise UserError(f"an export is a safetensors file and {destination} would not say so: name it {name}")
    run = RunDirectory(run_path)
    weights = run_weights(run, averaged, best)
    metadata = {
        "format": "pt",
        "recipe": json.dumps(run.recipe().to_dict()),
        "classes": json.dumps(run.facts()["dataset"]["classes"]),
    }
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with replacing(destination) as temporary:
            safetensors.torch.save_file(
                {name: tensor.contiguous() for name, tensor in weights.items()}, temporary, metadata
            )
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{destination} cannot be written ({error}): choose another file") from None


def recipe_of(weights: Path, recipe_name: str | None, overrides: list[str]) -> Recipe:
    """The recipe that was named, or else the one in the metadata of an exported file, with overrides.

    Raises:
        UserError: none is named and the file does not say.
    """
    if recipe_name is not None:
        return load(recipe_name, overrides)
    metadata = _metadata(weights)
    if "recipe" not in metadata:
        raise UserError(f"{weights} does not say which recipe it belongs to: add --recipe NAME")
    return override(validate(json.loads(metadata["recipe"])), overrides)


def classes_of(weights: Path) -> list[str] | None:
    """The names of the classes in the metadata of an exported file; None where there are none."""
    metadata = _metadata(weights)
    return json.loads(metadata["classes"]) if "classes" in metadata else None


def _metadata(weights: Path) -> dict[str, str]:
    if weights.suffix != ".safetensors" or not weights.is_file():
        return {}
    try:
        with safetensors.safe_open(weights, framework="pt") as file:
            return file.metadata() or {}
    except safetensors.SafetensorError:
        return {}
