"""`bigbatch evaluate`: the accuracy of a run or of a weights file on shards."""

from pathlib import Path

from launcher.engines.base import make_accelerator
from launcher.evaluation.accuracy import evaluate
from launcher.evaluation.mistakes import PredictionRecorder, write_mistakes
from launcher.evaluation.saved_weights import recipe_of, run_weights
from launcher.recipe_shards import open_shards
from launcher.runs.run_directory import RunDirectory
from launcher.workers import default_workers
from models.build import build
from models.weights import fit_weights, read_weights
from recipes.load import override

_BATCH_SIZE = 64


def evaluate_weights(
    origin: Path, recipe_name: str | None, overrides: list[str], averaged: bool, workers: int | None
) -> None:
    """Print top-1 and top-5 of a run's raw and averaged weights, or of a file's, over the validation split.

    What a run's weights get wrong is kept in its directory for `bigbatch report`: of the averaged ones if it has them.

    Raises:
        UserError: weights, recipe or shards are missing or do not fit each other.
    """
    run = RunDirectory(origin) if origin.is_dir() else None
    if run:
        recipe = override(run.recipe(), overrides)
        candidates = {"raw": run_weights(run, averaged=False)}
        if averaged and recipe.ema.decay is not None:
            candidates["averaged"] = run_weights(run, averaged=True)
    else:
        candidates = {origin.name: read_weights(origin)}
        recipe = recipe_of(origin, recipe_name, overrides)
    shards = open_shards(recipe)
    split = shards.split("val")
    accelerator = make_accelerator(recipe)
    workers = default_workers() if workers is None else workers
    for label, weights in candidates.items():
        model = build(recipe, len(shards.classes))
        fit_weights(model, weights, str(origin), new_head=False)
        guesses = PredictionRecorder()
        result = evaluate(model.to(accelerator.device), split, recipe, accelerator, _BATCH_SIZE, workers, guesses)
        top5 = f"  top-5 {result.top5:.2%}" if result.top5 is not None else ""
        accelerator.print(f"{label}: top-1 {result.top1:.2%}{top5}  loss {result.loss:.4f}  ({result.images:,} images)")
    if run and accelerator.num_processes == 1:  # with more, each has seen a share only
        try:
            write_mistakes(run, label, shards.classes, guesses.compared_with(split))
        except OSError as error:  # a run that is only to be read is evaluated all the same
            accelerator.print(
                f"warning: {run.mistakes_file} cannot be written ({error.strerror}): the report will not show the mistakes"
            )
