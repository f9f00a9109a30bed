"""The weights that training starts from, named by `model.weights`, with a head that fits the classes of the shards."""

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from launcher.evaluation.class_names import (
    ClassMatch,
    describe_classes,
    head_parameters,
    match_classes,
    reorder_head,
)
from launcher.evaluation.saved_weights import SavedWeights, file_weights, run_weights
from launcher.runs.run_directory import find_run
from models.build import build
from models.pretrained import timm_pretrained
from models.weights import fit_weights
from recipes.errors import UserError
from recipes.local_paths import local_path
from recipes.schema import Recipe
from recipes.sections import TIMM

_FROZEN_AT_RANDOM = (
    "model.train={} freezes the other layers at random values, because no weights are given: add model.weights=FILE, "
    "or model.weights=timm"
)


def load_initial_weights(
    model: nn.Module, recipe: Recipe, classes: list[str], say: Callable[[str], None] = print
) -> list[str]:
    """Load the weights that `model.weights` names, if any, into the recipe's model; return notes for the user.

    If the weights were trained on `classes`, the head is loaded and its outputs are put into that order. If they were
    trained on other classes, the head keeps its initial values.

    Args:
        model: of the recipe, on any device.
        recipe: names the weights.
        classes: the names of the shards' classes, in the order of the model's outputs.
        say: called with a line that announces a download before it starts.

    Raises:
        UserError: the weights cannot be found or do not fit.
    """
    origin = recipe.model.weights
    if origin is None:
        return [] if recipe.model.train == "all" else [_FROZEN_AT_RANDOM.format(recipe.model.train)]
    if origin == TIMM:
        return fit_weights(model, timm_pretrained(recipe.model.name, say), origin)
    weights = _weights(local_path(origin), recipe.model.weights_key)
    tensors, notes = weights.tensors, [f"starts from the {weights.title}"]
    match match_classes(weights.classes, classes):
        case ClassMatch.REORDERED:
            tensors = reorder_head(tensors, model, weights.classes or [], classes)
            notes.append("the outputs of the head are put into the order of the shards' classes")
        case ClassMatch.DIFFERENT:
            trained = weights.classes or []
            notes.append(
                f"head: {describe_classes(trained, classes)} in {origin}, {describe_classes(classes, trained)} here; "
                f"a new head is trained"
            )
            own = model.state_dict()
            tensors = tensors | {name: own[name] for name in head_parameters(model)}
        case ClassMatch.UNNAMED if _takes_head(model, tensors):
            notes.append("its classes or those of the shards have no names; the head is assumed to have the same order")
    return notes + fit_weights(model, tensors, origin)


def check_initial_weights(recipe: Recipe, classes: list[str]) -> list[str]:
    """Run the checks of `load_initial_weights` without a download or memory for a model; return its notes.

    Raises:
        UserError: the weights cannot be found or do not fit.
    """
    if recipe.model.weights == TIMM:
        cfg = timm.models.get_pretrained_cfg(recipe.model.name)
        if cfg is None or not cfg.has_weights:
            raise UserError(f"timm has no pretrained weights of {recipe.model.name}: add model.weights=null")
        return []
    with torch.device("meta"):
        model = build(recipe, len(classes))
    with warnings.catch_warnings():
        # Loading into a meta model only compares names and shapes. torch warns about that, but it is intended here.
        warnings.filterwarnings("ignore", message=".*copying from a non-meta parameter", category=UserWarning)
        return load_initial_weights(model, recipe, classes)


def _takes_head(model: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    """Return whether these weights hold a head of the model's shape; otherwise `fit_weights` says that one is new."""
    own = model.state_dict()
    return all(name in tensors and tensors[name].shape == own[name].shape for name in head_parameters(model))


def _weights(path: Path, key: str | None) -> SavedWeights:
    found = find_run(path)
    if found is None:
        return file_weights(path, key)
    run, step = found
    return run_weights(run, ema=True, step=step)
