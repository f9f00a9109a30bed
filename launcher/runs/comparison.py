"""`bigbatch compare`: the accuracies of runs on the same images, from the predictions that evaluation kept."""

import os
import shlex
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
    """Return each run with its accuracy, and its difference from the first one on the same images.

    Args:
        runs: run directories.
        split: "train", "val" or "test".

    Raises:
        UserError: there are not two runs, one is given twice, or one has kept no predictions on the images of the first
            one.
    """
    if len(runs) < 2:
        raise UserError("a comparison needs at least two runs, e.g. `bigbatch compare runs/demo runs/other`")
    for number, run in enumerate(runs):  # a run that counts twice would make a mean over seeds look too certain
        if os.path.realpath(run) in map(os.path.realpath, runs[:number]):
            raise UserError(f"{run} is given twice: a comparison needs different runs")
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
        UserError: a run has kept none on the split, or there are no images on which all runs have kept some.
    """
    recipes = [run.recipe() for run in runs]  # refuses what is no run directory
    kept = []
    for run in runs:
        found = {one.images: one for one in read_predictions(run) if one.split == split}
        if not found:
            raise UserError(
                f"{run.path} has kept no predictions on split {split}: run `bigbatch evaluate "
                f"{shlex.quote(str(run.path))} --split {split}` first"
            )
        kept.append(found)
    own = (runs[0].metadata().dataset.digest, split)
    common = [images for images in kept[0] if all(images in found for found in kept)]
    if not common:
        nothing_in_common = [run for run, found in zip(runs, kept) if not kept[0].keys() & found.keys()]
        # Each may have images in common with the first run, but not the same ones as the others.
        not_on_its_own = [run for run, found in zip(runs[1:], kept[1:]) if own not in found]
        other = [*nothing_in_common, *not_on_its_own, runs[0]][0]
        command = ["bigbatch", "evaluate", str(other.path), "--data", str(recipes[0].data.path), "--split", split]
        raise UserError(
            f"{other.path} was not evaluated on the images of {runs[0].path}: run `{shlex.join(command)}` first"
        )
    images = own if own in common else common[0]
    return [found[images] for found in kept]


def _difference(first: np.ndarray, second: np.ndarray) -> PairedDifference:
    return paired_difference(int((first & ~second).sum()), int((second & ~first).sum()), len(first))
