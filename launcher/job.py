"""The program of a submitted job, on every rank: check the node, copy the shards near, train, export.

    python -m launcher.job RUN

The recipe was put aside in ``RUN/job/recipe.yaml`` when the job was submitted.
"""

import os
from pathlib import Path
from typing import Annotated

import typer

from slurm.job import FINISHED, STOPPED

PACKAGES = ["recipes", "models", "data", "slurm", "launcher"]  # its code, of which a submission keeps a copy


def job(
    run: Path,
    micro_batch: Annotated[int | None, typer.Option()] = None,
    workers: Annotated[int | None, typer.Option()] = None,
    stage: Annotated[str | None, typer.Option()] = None,
) -> None:
    """Train the run's recipe; exit as `slurm.job` says."""
    from launcher.doctor import preflight
    from launcher.inputs import loader_processes
    from launcher.planned_runs import WEIGHTS
    from launcher.processes import is_main_process
    from launcher.run_directory import RunDirectory
    from launcher.saved_weights import export
    from launcher.train import train

    recipe = RunDirectory(run / "job").recipe()
    near = preflight(recipe.data.path, run, Path(os.path.expandvars(stage)) if stage else None)
    if workers is None and "SLURM_CPUS_PER_TASK" in os.environ:
        workers = loader_processes(int(os.environ["SLURM_CPUS_PER_TASK"]))
    finished = train(recipe, run, micro_batch, workers, shards_at=near, submitted=True)
    if finished and is_main_process():
        export(run, run / WEIGHTS, averaged=True)
    raise typer.Exit(FINISHED if finished else STOPPED)


if __name__ == "__main__":
    from launcher.cli import run_alone

    run_alone(job)
