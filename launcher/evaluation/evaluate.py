"""`bigbatch evaluate`: the accuracy of a run or of a weights file on a split of some shards."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from data.progress import say
from data.reading.shards import ShardSet, Split
from launcher.engines.base import make_accelerator
from launcher.evaluation.accuracy import measure_accuracy
from launcher.evaluation.class_names import (
    ClassMatch,
    describe_classes,
    head_parameters,
    match_classes,
    reorder_head,
)
from launcher.evaluation.class_subsets import has_all, imagenet_classes
from launcher.evaluation.evaluation_result import EvaluationResult, evaluation_result
from launcher.evaluation.prediction_recorder import PredictionRecorder, keep_predictions
from launcher.evaluation.saved_weights import SavedWeights, file_weights, open_saved, recipe_of, saved_weights
from launcher.recipe_shards import open_shards
from launcher.runs.run_directory import RunDirectory, find_run
from launcher.workers import default_workers
from models.build import build
from models.weights import fit_weights
from recipes.errors import UserError
from recipes.load import override
from recipes.local_paths import local_path
from recipes.schema import Recipe

_BATCH_SIZE = 64
_VAL, _TEST = "val", "test"


@dataclass(frozen=True)
class EvaluateOptions:
    """How `evaluate` evaluates.

    Attributes:
        ema: evaluate a run's EMA weights too, if it has any.
        workers: processes that prepare images; None: what the CPUs allow.
        step: of the run's checkpoint; None: the newest.
        split_name: "train", "val" or "test". Every split is evaluated without augmentation.
        modules: the user's modules that a weights file may import, as `recipe_of` says.
        subset: accept shards with some of the model's classes, and leave out its other outputs.
        right_labels: as `right_label_accuracy` takes it; None: each image has one label.
    """

    ema: bool = True
    workers: int | None = None
    step: int | None = None
    split_name: str = _VAL
    modules: Sequence[str] = ()
    subset: bool = False
    right_labels: str | None = None


def evaluate(
    origin: str | Path,
    recipe_name: str | None = None,
    overrides: Sequence[str] = (),
    options: EvaluateOptions | None = None,
) -> list[EvaluationResult]:
    """Return what a run's raw and EMA weights, or a file's, reach over a split of the shards, the EMA weights last.

    The mistakes of a run's EMA weights, or else of its raw ones, are written to its directory for `bigbatch report`.

    Args:
        origin: a run directory, a checkpoint in one, or a weights file.
        recipe_name: the recipe of a weights file that does not name one.
        overrides: ``section.key=value`` overrides of the recipe.
        options: how to evaluate.

    Raises:
        UserError: weights, recipe or shards are missing or do not fit each other.
    """
    origin, options = local_path(origin), options or EvaluateOptions()
    found = find_run(origin, options.step)
    run = found[0] if found else None
    if found:
        recipe = override(found[0].recipe(), tuple(overrides))
        candidates = _candidates(*found, options.ema)
    else:
        recipe = recipe_of(origin, recipe_name, list(overrides), options.modules)
        # In an exported recipe, the key refers to the file from which that training started, not to this file.
        candidates = [file_weights(origin, recipe.model.weights_key if recipe_name else None)]
    # The number of classes is not checked here, because `_fitted_model` compares their names.
    shards = open_shards(recipe.variant(data={"classes": None}))
    split = _split(shards, options.split_name)
    accelerator = make_accelerator(recipe)
    workers = default_workers() if options.workers is None else options.workers
    results = []
    for weights in candidates:
        model, note = _fitted_model(weights, recipe, shards, options.subset)
        if note and weights is candidates[0] and accelerator.is_main_process:
            say(f"note: {note}")
        recorder = PredictionRecorder()
        model = model.to(accelerator.device)
        accuracy = measure_accuracy(model, split, recipe, accelerator, _BATCH_SIZE, workers, recorder)
        recorder.gather(accelerator)
        results.append(evaluation_result(weights, accuracy, recorder, shards, split, options.right_labels))
    if run and accelerator.is_main_process:
        keep_predictions(run, recorder, shards, split, str(weights.kind), weights.step)
    if _TEST in shards.splits and split.name == _VAL and accelerator.is_main_process:
        say(f"note: {shards.root} has a test split of {len(shards.splits[_TEST]):,} images too: add --split {_TEST}")
    return results


def _split(shards: ShardSet, name: str) -> Split:
    if name == _VAL and _VAL not in shards.splits:
        if _TEST in shards.splits:
            raise UserError(f"{shards.root} has no validation split, but a test split: add --split {_TEST}")
        raise UserError(
            f"{shards.root} has no validation split: evaluate the training images with --split train, or shard again "
            f"with --val-fraction"
        )
    split = shards.split(name)
    if not len(split):
        raise UserError(f"split {name!r} of {shards.root} has no images: choose another --split")
    return split


def _candidates(run: RunDirectory, step: int | None, ema: bool) -> list[SavedWeights]:
    """Return the raw weights of a run's checkpoint, then its EMA weights if they are requested and exist."""
    saved, reader = open_saved(run, step)
    raw = saved_weights(run, saved, reader, ema=False)
    smoothed = saved_weights(run, saved, reader, ema=True) if ema else raw
    return [raw, smoothed] if smoothed.kind == "EMA" else [raw]


def _fitted_model(weights: SavedWeights, recipe: Recipe, shards: ShardSet, subset: bool) -> tuple[nn.Module, str]:
    """Return the model with these weights, its outputs in the order of the shards' classes, and a note for the user.

    Raises:
        UserError: the weights are of other classes, or do not fit the model.
    """
    trained, wanted = weights.classes, shards.classes
    model, tensors, note = build(recipe, len(wanted)), weights.tensors, ""
    head = next((tensors[name] for name in head_parameters(model) if name in tensors), None)
    if trained is None and head is not None:
        trained = imagenet_classes(head, wanted)
    if subset and has_all(trained, wanted):
        tensors = reorder_head(tensors, model, trained or [], wanted)
        fit_weights(model, tensors, str(weights.origin), new_head=False)
        return model, f"{shards.root} has {len(wanted):,} of the {len(trained or []):,} classes of {weights.origin}"
    match match_classes(trained, wanted):
        case ClassMatch.REORDERED:
            tensors = reorder_head(tensors, model, trained or [], wanted)
            note = f"{shards.root} has the classes of {weights.origin} in another order: they are matched by name"
        case ClassMatch.DIFFERENT:
            raise UserError(
                f"{weights.origin} was trained on {describe_classes(trained or [], wanted)}, but the shards in "
                f"{shards.root} have {describe_classes(wanted, trained or [])}: give shards of the same classes"
                f"{', or add --subset to leave out the other classes' if has_all(trained, wanted) else ''}"
            )
        case ClassMatch.UNNAMED:
            note = (
                f"the classes of {weights.origin} and {shards.root} cannot be compared, because one of them has no "
                f"names: they are assumed to have the same order"
            )
    fit_weights(model, tensors, str(weights.origin), new_head=False)
    return model, note
