"""The part of the `bigbatch` command that is about jobs: submit, runs, logs, cancel, resume, doctor."""

from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.options import DataOption, MicroBatch, Workers

jobs = typer.Typer()

RunArgument = Annotated[Path, typer.Argument(metavar="RUN", help="A run directory.")]


@jobs.command(
    epilog="Example: bigbatch submit convnext_tiny_in1k --data /data/in1k --nodes 2-8 --gpus-per-node 8 --time 1-00:00:00"
)
def submit(
    recipes: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE [KEY=VALUE]... [RECIPE [KEY=VALUE]...]...",
            help="Recipes, each followed by its own changes. A later one starts from the weights of the one before, when that succeeded.",
        ),
    ],
    data: DataOption = None,
    nodes: Annotated[str, typer.Option(help="Number of nodes; 2-8 takes what is free, at every start anew.")] = "1",
    gpus_per_node: Annotated[
        int | None, typer.Option(help="One process each. Default: the profile's, or 1.", min=0)
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Default: the profile's, or SLURM's.")] = None,
    time: Annotated[
        str | None, typer.Option(help="Limit of one stretch in SLURM's notation; a longer run queues again by itself.")
    ] = None,
    cluster: Annotated[
        str | None, typer.Option(help="A profile in clusters.toml, or `local`: this machine, without SLURM.")
    ] = None,
    array: Annotated[str | None, typer.Option(help="A sweep as a job array, e.g. optimizer.lr=1e-3,2e-3,4e-3.")] = None,
    after: Annotated[str | None, typer.Option(metavar="JOB", help="Start only when that job has succeeded.")] = None,
    run_dir: Annotated[
        Path | None, typer.Option(help="Default: runs/RECIPE. Of a chain or sweep: the folder of the runs.")
    ] = None,
    micro_batch: MicroBatch = None,
    workers: Workers = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the script and the plan; submit nothing.")
    ] = False,
):
    """Submit runs to SLURM. They save before their time is up, when pre-empted and on failures, and queue again by themselves."""
    from launcher.jobs.planned_runs import Options
    from launcher.jobs.submission import submit as submit_runs

    options = Options(data, run_dir, cluster, nodes, gpus_per_node, partition, time, array, after, micro_batch, workers)
    submit_runs(recipes, options, dry_run)


@jobs.command(epilog="Example: bigbatch runs")
def runs(folder: Annotated[Path, typer.Argument(help="The folder that holds the run directories.")] = Path("runs")):
    """Show how every run stands: state, job, nodes, step, speed, accuracy, time left, restarts."""
    from launcher.runs.runs_table import print_runs

    print_runs(folder)


@jobs.command(epilog="Example: bigbatch logs runs/convnext_tiny_in1k --rank 3")
def logs(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on printing while the job lives.")] = False,
    rank: Annotated[int, typer.Option(help="Of which process.", min=0)] = 0,
):
    """Print what a submitted run printed; if it failed, the first failure first."""
    from launcher.jobs.logs import print_log

    print_log(run, rank, follow)


@jobs.command(epilog="Example: bigbatch cancel runs/convnext_tiny_in1k")
def cancel(run: RunArgument):
    """End a submitted run. What it has saved stays; `bigbatch resume` goes on with it."""
    from launcher.jobs.control import cancel_run

    cancel_run(run)


@jobs.command(epilog="Example: bigbatch resume runs/convnext_tiny_in1k")
def resume(run: RunArgument):
    """Submit a run again that was cancelled, failed or got lost: same code, same recipe, at the exact step."""
    from launcher.jobs.control import resume_run

    resume_run(run)


@jobs.command(epilog="Example: bigbatch doctor --data shards/digits")
def doctor(
    data: Annotated[str | None, typer.Option("--data", help="Shards to look at.")] = None,
    run_dir: Annotated[Path, typer.Option(help="Where runs are kept; its disk is measured.")] = Path("runs"),
):
    """Look at this machine: GPUs, memory, shards, disk, SLURM. Every job does the same on its nodes before it trains."""
    from launcher.jobs.doctor import examine_here

    raise typer.Exit(0 if examine_here(data, run_dir) else 1)
