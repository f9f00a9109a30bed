"""What every rank of a submitted job does: check the node, copy the shards near, train, export.

The recipe is the one that was saved in ``RUN/job/recipe.yaml`` when the job was submitted.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from slurm.job import FINISHED, STOPPED


def run_rank(
    run: Path,
    micro_batch: Annotated[int | None, typer.Option()] = None,
    workers: Annotated[int | None, typer.Option()] = None,
    stage: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Train the run's recipe; exit as `slurm.job` says."""
    from launcher.evaluation.saved_weights import export
    from launcher.jobs.doctor import preflight
    from launcher.jobs.planned_runs import WEIGHTS
    from launcher.runs.run_directory import RunDirectory
    from launcher.training.train import train
    from launcher.workers import loader_processes
    from launcher.world import this_process

    recipe = RunDirectory(run / "job").recipe()
    near = preflight(recipe.data.path, run, Path(os.path.expandvars(stage)) if stage else None)
    if workers is None and "SLURM_CPUS_PER_TASK" in os.environ:
        workers = loader_processes(int(os.environ["SLURM_CPUS_PER_TASK"]))
    finished = train(recipe, run, micro_batch, workers, shards_at=near, submitted=True)
    if finished and this_process().is_main:
        export(run, run / WEIGHTS, averaged=True)
    raise typer.Exit(FINISHED if finished else STOPPED)
