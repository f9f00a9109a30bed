"""Loads trained weights from what the user names: a run, one of its checkpoints, or a weights file."""

import re
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import safetensors
from torch import Tensor

from data.progress import say
from launcher.checkpoints import checkpoint
from launcher.checkpoints.checkpoint import Checkpoint, CheckpointReader
from launcher.engines.base import BUFFERS, BUFFERS_EMA, WEIGHTS
from launcher.engines.optimizer import EMA
from launcher.runs.run_directory import RunDirectory, find_run
from models.weights import read_metadata, read_weights
from recipes.errors import UserError
from recipes.load import load, override, validate, with_modules
from recipes.parsing import parse_json
from recipes.schema import Recipe


@dataclass(frozen=True)
class SavedWeights:
    """Weights and their metadata.

    Attributes:
        tensors: on the CPU, under timm's names.
        origin: the run directory or file, as the user gave it.
        kind: "EMA" or "raw"; None if the file does not say.
        step: optimizer steps finished; None if the file does not say.
        classes: the class names of the outputs; None if the file has none.
    """

    tensors: dict[str, Tensor]
    origin: Path
    kind: str | None = None
    step: int | None = None
    classes: list[str] | None = None

    @property
    def title(self) -> str:
        """Which weights they are, e.g. "EMA weights of step 44 of runs/demo"."""
        if self.kind is None or self.step is None:
            return f"weights of {self.origin}"
        return f"{self.kind} weights of step {self.step} of {self.origin}"


def open_weights(
    origin: Path, recipe_name: str | None, ema: bool, step: int | None, modules: Sequence[str] = ()
) -> tuple[Recipe, SavedWeights]:
    """Return the recipe and the weights of a run directory, of a checkpoint in one, or of a weights file.

    The recipe of a run is that of `recipe_for_images`.

    Args:
        origin: the run, checkpoint or file.
        recipe_name: the recipe of a weights file that does not name one.
        ema: use a run's EMA weights if it has them.
        step: of the run's checkpoint; None: the newest.
        modules: the user's modules that a weights file may import, as `recipe_of` says.

    Raises:
        UserError: weights or recipe are missing or cannot be read.
    """
    found = find_run(origin, step)
    if found:
        run, step = found
        weights = run_weights(run, ema, step)
        return recipe_for_images(run), weights
    recipe = recipe_of(origin, recipe_name, [], modules)
    # In an exported recipe, the key refers to the file from which that training started, not to this file.
    return recipe, file_weights(origin, recipe.model.weights_key if recipe_name else None)


def recipe_for_images(run: RunDirectory) -> Recipe:
    """Return a run's recipe for images outside its shards; turned upright if those in the shards were.

    For the shards themselves that changes nothing, since no rotation is left in them.
    """
    recipe = run.recipe()
    return recipe.variant(input={"upright": True}) if run.metadata().dataset.upright else recipe


def run_weights(run: RunDirectory, ema: bool, step: int | None = None, best: bool = False) -> SavedWeights:
    """Return weights of a run's checkpoint: the newest, that of `step`, or that of the best evaluation.

    Args:
        run: the run directory.
        ema: prefer the EMA weights if the run has them; with `best`, use them only if they reached the best accuracy.
        step: of the checkpoint; None: the newest.
        best: use the checkpoint of the best evaluation.

    Raises:
        UserError: there is no run, or it has no such complete checkpoint.
    """
    run.recipe()
    reached = run.metrics.best() if best else None
    if best and reached is None:
        raise UserError(f"{run.path} has not been evaluated yet, so it has no best checkpoint: leave --best out")
    saved, reader = open_saved(run, reached.step if reached else step)
    if reached:
        ema = ema and reached.kind == "EMA"
    return saved_weights(run, saved, reader, ema)


def saved_weights(run: RunDirectory, saved: Checkpoint, reader: CheckpointReader, ema: bool) -> SavedWeights:
    """Return the EMA weights of a run's open checkpoint if they are requested and in it, else the raw ones.

    Raises:
        UserError: the checkpoint cannot be read.
    """
    with _reading(saved.path):
        tensors = reader.tensors(WEIGHTS) | reader.tensors(BUFFERS)
        ema = ema and EMA in reader.kinds
        if ema:
            tensors |= reader.tensors(EMA) | reader.tensors(BUFFERS_EMA)
    classes = run.metadata().dataset.classes
    return SavedWeights(tensors, run.path, "EMA" if ema else "raw", saved.step, classes)


def open_saved(run: RunDirectory, step: int | None) -> tuple[Checkpoint, CheckpointReader]:
    """Return a run's checkpoint of that step with its reader; for None, the newest valid one.

    Damaged checkpoints that are newer than the latter are named in a warning.

    Raises:
        UserError: there is none; names the steps that have a checkpoint.
    """
    if step is None:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            newest = checkpoint.read_latest(run.checkpoints)
        for warning in caught:
            say(f"warning: {warning.message}")
        if newest is None:
            raise UserError(f"{run.path} has no checkpoint yet: train it first")
        return newest
    steps = checkpoint.saved_steps(run.checkpoints)
    if step not in steps:
        listed = ", ".join(map(str, sorted(steps))) or "none"
        raise UserError(f"{run.path} has no checkpoint of step {step}: give one of those that it has ({listed})")
    saved = checkpoint.open_checkpoint(steps[step])
    with _reading(saved.path):
        return saved, saved.reader()


def file_weights(path: Path, key: str | None = None) -> SavedWeights:
    """Return the weights of a file or hub folder, with what `bigbatch export` wrote beside them.

    Args:
        key: which weights to take from a file that holds several, as `models.weights.read_weights` says.

    Raises:
        UserError: it cannot be read as weights, or its metadata are damaged.
    """
    metadata = read_metadata(path)
    kind, step = metadata.get("weights"), metadata.get("step", "")
    return SavedWeights(
        read_weights(path, key),
        path,
        kind if kind in ("EMA", "raw") else None,
        int(step) if re.fullmatch("[0-9]{1,18}", step) else None,  # more digits than Python converts are damage
        classes_of(path),
    )


def recipe_of(weights: Path, recipe_name: str | None, overrides: list[str], modules: Sequence[str] = ()) -> Recipe:
    """Return the recipe that was named, or else the one in the metadata of an exported file, with overrides.

    Args:
        modules: the user's modules that may be imported. A file does not decide that: it may come from a stranger.

    Raises:
        UserError: no recipe is named, and the file is damaged or has none, or one that this version cannot read or that
            needs other modules.
    """
    if recipe_name is not None:
        return with_modules(load(recipe_name, overrides), list(modules))
    written = read_metadata(weights).get("recipe")
    if written is None:
        raise UserError(f"{weights} does not say which recipe it belongs to: add --recipe NAME")
    try:
        recipe = validate(parse_json(written))
    except ValueError as error:  # of JSON, or a UserError that names the key
        raise UserError(
            f"the recipe in the metadata of {weights} cannot be read ({error}): add --recipe NAME"
        ) from None
    for module in recipe.code.modules:
        if module not in modules:
            raise UserError(
                f"{weights} needs the module {module}, and a weights file alone does not make bigbatch run code: add "
                f"--import {module} if you trust it"
            )
    return override(recipe, overrides)


def classes_of(weights: Path) -> list[str] | None:
    """Return the names of the classes in the metadata of an exported file; None if there are none.

    Raises:
        UserError: the names are damaged.
    """
    written = read_metadata(weights).get("classes")
    if written is None:
        return None
    try:
        names = parse_json(written)
    except ValueError:
        names = None
    if not isinstance(names, list) or not names or not all(isinstance(name, str) for name in names):
        raise UserError(f"the class names in the metadata of {weights} are damaged: export it again")
    return names


@contextmanager
def _reading(folder: Path) -> Iterator[None]:
    """Turn read errors into a UserError: a running training may have removed this checkpoint for a newer one."""
    try:
        yield
    except (OSError, RuntimeError, safetensors.SafetensorError) as error:
        raise UserError(f"checkpoint {folder} cannot be read ({error}): was it removed just now? Try again") from None
