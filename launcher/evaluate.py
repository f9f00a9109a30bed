"""`bigbatch evaluate`: the accuracy of a run or of a weights file on shards."""

from pathlib import Path

from launcher.engine import make_accelerator
from launcher.evaluation import evaluate
from launcher.run_directory import RunDirectory
from launcher.saved_weights import described_by, run_weights
from launcher.train import default_workers, open_shards
from models.build import build
from models.weights import fit_weights, read_weights
from recipes.errors import UserError
from recipes.load import load, override
from recipes.schema import Recipe

_BATCH_SIZE = 64


def evaluate_weights(origin: Path, recipe_name: str | None, overrides: list[str], averaged: bool, workers: int | None) -> None:
    """Print top-1 and top-5 of a run's raw and averaged weights, or of a file's, over the validation split.

    Raises:
        UserError: weights, recipe or shards are missing or do not fit each other.
    """
    if origin.is_dir():
        run = RunDirectory(origin)
        recipe = override(run.recipe(), overrides)
        candidates = {"raw": run_weights(run, averaged=False)}
        if averaged and recipe.ema.decay is not None:
            candidates["averaged"] = run_weights(run, averaged=True)
    else:
        candidates = {origin.name: read_weights(origin)}
        recipe = _recipe_of(origin, recipe_name, overrides)
    shards = open_shards(recipe)
    accelerator = make_accelerator(recipe)
    for label, weights in candidates.items():
        model = build(recipe, len(shards.classes))
        fit_weights(model, weights, str(origin), new_head=False)
        workers = default_workers() if workers is None else workers
        result = evaluate(model.to(accelerator.device), shards.split("val"), recipe, accelerator, _BATCH_SIZE, workers)
        top5 = f"  top-5 {result.top5:.4%}" if result.top5 is not None else ""
        accelerator.print(f"{label}: top-1 {result.top1:.4%}{top5}  loss {result.loss:.4f}  ({result.images:,} images)")


def _recipe_of(weights: Path, recipe_name: str | None, overrides: list[str]) -> Recipe:
    if recipe_name is not None:
        return load(recipe_name, overrides)
    described = described_by(weights)
    if described is None:
        raise UserError(f"{weights} does not say which recipe it belongs to: add --recipe NAME")
    return override(described, overrides)
