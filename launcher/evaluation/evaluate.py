"""`bigbatch evaluate`: the accuracy of a run or of a weights file on a split of some shards."""

from collections.abc import Sequence
from pathlib import Path

from torch import nn

from data.reading.shards import ShardSet
from launcher.engines.base import make_accelerator
from launcher.evaluation.accuracy import Accuracy, evaluate
from launcher.evaluation.class_names import ClassMatch, describe_classes, match_classes, reorder_head
from launcher.evaluation.prediction_recorder import PredictionRecorder
from launcher.evaluation.saved_weights import SavedWeights, file_weights, open_saved, recipe_of, saved_weights
from launcher.recipe_shards import open_shards
from launcher.runs.mistakes import Mistakes, write_mistakes
from launcher.runs.run_directory import RunDirectory, find_run
from launcher.workers import default_workers
from models.build import build
from models.weights import fit_weights
from recipes.errors import UserError
from recipes.load import override
from recipes.schema import Recipe

_BATCH_SIZE = 64


def evaluate_weights(
    origin: Path,
    recipe_name: str | None,
    overrides: list[str],
    ema: bool = True,
    workers: int | None = None,
    step: int | None = None,
    split_name: str = "val",
    modules: Sequence[str] = (),
) -> None:
    """Print top-1 and top-5 of a run's raw and EMA weights, or of a file's, over a split of the shards.

    The mistakes of a run's EMA weights, or else of its raw ones, are written to its directory for `bigbatch report`.

    Args:
        origin: a run directory, a checkpoint in one, or a weights file.
        recipe_name: the recipe of a weights file that does not name one.
        overrides: ``section.key=value`` overrides of the recipe.
        ema: evaluate a run's EMA weights too, if it has any.
        workers: processes that prepare images; None: what the CPUs allow.
        step: of the run's checkpoint; None: the newest.
        split_name: "train", "val" or "test". Every split is evaluated without augmentation.
        modules: the user's modules that a weights file may import, as `recipe_of` says.

    Raises:
        UserError: weights, recipe or shards are missing or do not fit each other.
    """
    found = find_run(origin, step)
    run = found[0] if found else None
    if found:
        recipe = override(found[0].recipe(), overrides)
        candidates = _candidates(*found, ema)
    else:
        recipe = recipe_of(origin, recipe_name, overrides, modules)
        # In an exported recipe, the key refers to the file from which that training started, not to this file.
        candidates = [file_weights(origin, recipe.model.weights_key if recipe_name else None)]
    # The number of classes is not checked here, because `_fitted_model` compares their names.
    shards = open_shards(recipe.variant(data={"classes": None}))
    split = shards.split(split_name)
    if not len(split):
        raise UserError(f"split {split_name!r} of {shards.root} has no images: choose another --split")
    accelerator = make_accelerator(recipe)
    workers = default_workers() if workers is None else workers
    for weights in candidates:
        model, note = _fitted_model(weights, recipe, shards)
        if note and weights is candidates[0]:
            accelerator.print(f"note: {note}")
        recorder = PredictionRecorder()
        result = evaluate(model.to(accelerator.device), split, recipe, accelerator, _BATCH_SIZE, workers, recorder)
        accelerator.print(_line(weights, result, split_name))
    if run and accelerator.num_processes == 1:  # with more, each process has seen only a part of the split
        mistakes = Mistakes.model_validate(
            recorder.compared_with(split)
            | {"weights": weights.kind, "step": weights.step, "classes": list(shards.classes)}
            | {"dataset": shards.name, "digest": shards.digest, "split": split_name}
        )
        try:
            write_mistakes(run, mistakes)
        except OSError as error:  # a read-only run can still be evaluated
            accelerator.print(
                f"warning: the mistakes cannot be written to {run.path} ({error.strerror}): "
                f"the report will not show them"
            )


def _candidates(run: RunDirectory, step: int | None, ema: bool) -> list[SavedWeights]:
    """Return the raw weights of a run's checkpoint, then its EMA weights if they are requested and exist."""
    saved, reader = open_saved(run, step)
    raw = saved_weights(run, saved, reader, ema=False)
    smoothed = saved_weights(run, saved, reader, ema=True) if ema else raw
    return [raw, smoothed] if smoothed.kind == "EMA" else [raw]


def _fitted_model(weights: SavedWeights, recipe: Recipe, shards: ShardSet) -> tuple[nn.Module, str]:
    """Return the model with these weights, its outputs in the order of the shards' classes, and a note for the user.

    Raises:
        UserError: the weights are of other classes, or do not fit the model.
    """
    trained, wanted = weights.classes, shards.classes
    model, tensors, note = build(recipe, len(wanted)), weights.tensors, ""
    match match_classes(trained, wanted):
        case ClassMatch.REORDERED:
            tensors = reorder_head(tensors, model, trained or [], wanted)
            note = f"{shards.root} has the classes of {weights.origin} in another order: they are matched by name"
        case ClassMatch.DIFFERENT:
            raise UserError(
                f"{weights.origin} was trained on {describe_classes(trained or [], wanted)}, but the shards in "
                f"{shards.root} have {describe_classes(wanted, trained or [])}: give shards of the same classes"
            )
        case ClassMatch.UNNAMED:
            note = (
                f"the classes of {weights.origin} and {shards.root} cannot be compared, because one of them has no "
                f"names: they are assumed to have the same order"
            )
    fit_weights(model, tensors, str(weights.origin), new_head=False)
    return model, note


def _line(weights: SavedWeights, result: Accuracy, split_name: str) -> str:
    top5 = f"  top-5 {result.top5:.2%}" if result.top5 is not None else ""
    evaluated = f"{result.images:,} images of split {split_name}"
    return f"{weights.title}: top-1 {result.top1:.2%}{top5}  loss {result.loss:.4f}  ({evaluated})"
