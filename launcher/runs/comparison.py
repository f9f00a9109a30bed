"""`bigbatch compare`: the accuracies of runs on the same images, from the predictions that evaluation kept."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from launcher.runs.intervals import wilson_interval
from launcher.runs.predictions import Predictions, read_predictions
from launcher.runs.run_directory import RunDirectory
from launcher.runs.significance import (
    PairedDifference,
    SeedDifference,
    SeedSpread,
    paired_difference,
    seed_difference,
    seed_spread,
)
from recipes.errors import UserError


@dataclass(frozen=True)
class ComparedRun:
    """One run of a comparison.

    Attributes:
        run: its path as the user gave it.
        top1: share of images whose likeliest class is the label, in 0..1.
        difference: to the first run, on the same images; None for the first run itself.
    """

    run: str
    predictions: Predictions
    top1: float
    difference: PairedDifference | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as `compare --json` prints it."""
        found = self.predictions
        return {
            "run": self.run,
            "weights": found.weights,
            "step": found.step,
            "dataset": found.dataset,
            "split": found.split,
            "images": len(found.labels),
            "top1": self.top1,
            "top1_interval": wilson_interval(self.top1, len(found.labels)),
            "difference_to_first": asdict(self.difference) if self.difference else None,
        }


@dataclass(frozen=True)
class SeedGroup:
    """Runs that differ in their seed only.

    Attributes:
        runs: their paths.
        spread: of their accuracies.
        difference: to the first group; None for that group, and where a group has a single run.
    """

    runs: list[str]
    spread: SeedSpread
    difference: SeedDifference | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as `compare --seeds --json` prints it."""
        return asdict(self)


def compare_runs(runs: Sequence[Path], split: str = "val") -> list[ComparedRun]:
    """Return each run with its accuracy, and its difference to the first one on the same images.

    Args:
        runs: run directories.
        split: "train", "val" or "test".

    Raises:
        UserError: there are not two runs, or one has kept no predictions on the images of the first one.
    """
    if len(runs) < 2:
        raise UserError("a comparison needs at least two runs, e.g. `bigbatch compare runs/demo runs/other`")
    kept = common_predictions([RunDirectory(run) for run in runs], split)
    first = kept[0]
    return [
        ComparedRun(
            str(run),
            one,
            float(one.right.mean()),
            None if number == 0 else _difference(first.right, one.right),
        )
        for number, (run, one) in enumerate(zip(runs, kept))
    ]


def group_by_seed(compared: Sequence[ComparedRun]) -> list[SeedGroup]:
    """Return the runs in groups whose recipes differ in the seed only, in order of their first runs."""
    groups: dict[str, list[ComparedRun]] = {}
    for one in compared:
        recipe = RunDirectory(Path(one.run)).recipe()
        groups.setdefault(recipe.model_copy(update={"seed": 0}).identity(), []).append(one)
    values = [[one.top1 for one in group] for group in groups.values()]
    return [
        SeedGroup(
            [one.run for one in group],
            seed_spread(own),
            None if number == 0 else seed_difference(values[0], own),
        )
        for number, (group, own) in enumerate(zip(groups.values(), values))
    ]


def common_predictions(runs: Sequence[RunDirectory], split: str) -> list[Predictions]:
    """Return the predictions of each run on the same images: the first run's own data set if all have it.

    Raises:
        UserError: a run has kept none on the split, or not on the same images.
    """
    recipes = [run.recipe() for run in runs]  # refuses what is no run directory
    kept = []
    for run in runs:
        found = {one.images: one for one in read_predictions(run) if one.split == split}
        if not found:
            raise UserError(
                f"{run.path} has kept no predictions on split {split}: run `bigbatch evaluate {run.path} --split "
                f"{split}` first"
            )
        kept.append(found)
    common = [images for images in kept[0] if all(images in found for found in kept)]
    if not common:
        other = next(run for run, found in zip(runs, kept) if not kept[0].keys() & found.keys())
        raise UserError(
            f"{other.path} was not evaluated on the images of {runs[0].path}: run `bigbatch evaluate {other.path} "
            f"--data {recipes[0].data.path} --split {split}` first"
        )
    own = (runs[0].metadata().dataset.digest, split)
    images = own if own in common else common[0]
    return [found[images] for found in kept]


def _difference(first: np.ndarray, second: np.ndarray) -> PairedDifference:
    return paired_difference(int((first & ~second).sum()), int((second & ~first).sum()), len(first))
