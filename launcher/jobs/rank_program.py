"""What every rank of a submitted job does: check its node, stage the shards, train, export.

The recipe is the one that `bigbatch submit` saved as ``RUN/job/recipe.yaml``.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import typer

from recipes.errors import UserError
from slurm.job import BAD_NODE, FINISHED, STOPPED


def run_rank(
    run: Path,
    micro_batch: Annotated[int | None, typer.Option()] = None,
    workers: Annotated[int | None, typer.Option()] = None,
    stage: Annotated[str | None, typer.Option()] = None,
    audit: Annotated[int | None, typer.Option()] = None,
) -> None:
    """Train the run's recipe; exit with one of the codes of `slurm.job`."""
    # Imported here so that a mistake in the arguments shows before torch is loaded, which takes seconds.
    from launcher.evaluation.export import export
    from launcher.jobs.planned_runs import WEIGHTS
    from launcher.jobs.preflight import check_all_nodes
    from launcher.runs.run_directory import RunDirectory
    from launcher.training.audit import WrongResult
    from launcher.training.train import StartOptions, train
    from launcher.world import this_process

    recipe = RunDirectory(run / "job").recipe()
    if recipe.data.path is None:
        raise UserError(f"{run}/job/recipe.yaml names no shards: submit the run again with --data")
    staged = check_all_nodes(recipe.data.path, run, Path(os.path.expandvars(stage)) if stage else None)
    options = StartOptions(micro_batch=micro_batch, workers=workers, shards_copy=staged, audit=audit, submitted=True)
    try:
        finished = train(recipe, run, options)
    except WrongResult as error:
        # As in the checks before the training: only the ranks of a node that cannot be used say why.
        if error.is_here:
            print(f"error: node {error.node} cannot be used: {error}", file=sys.stderr)
        elif this_process().is_main:
            print(f"the audit stops this start: {error}", file=sys.stderr)
        raise typer.Exit(BAD_NODE) from None
    if finished and this_process().is_main:
        export(RunDirectory(run), run / WEIGHTS)
    raise typer.Exit(FINISHED if finished else STOPPED)
