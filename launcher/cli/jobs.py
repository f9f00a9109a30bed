"""The commands for jobs: submit, runs, logs, cancel, resume, doctor."""

from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.completion import recipe_names_and_keys
from launcher.cli.options import DataOption, Import, MicroBatch, RunArgument, Workers, on_this_machine

jobs = typer.Typer()
_PANEL = "Planning and jobs"
_RESOURCES = "Resources"


@jobs.command(
    epilog="Example: bigbatch submit convnext_tiny_in1k --data /data/in1k --nodes 2-8 --gpus-per-node 8 "
    "--time 1-00:00:00",
    rich_help_panel=_PANEL,
)
def submit(
    recipes: Annotated[
        list[str],
        typer.Argument(
            metavar="RECIPE [KEY=VALUE]...",
            help="Recipes, each followed by its overrides. Each recipe after the first starts when the one before has "
            "finished, from its weights.",
            autocompletion=recipe_names_and_keys,
        ),
    ],
    data: DataOption = None,
    modules: Import = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            callback=on_this_machine,
            help="The run directory; for several runs the folder that holds theirs. Default: runs/RECIPE.",
        ),
    ] = None,
    array: Annotated[
        str | None,
        typer.Option(
            metavar="KEY=VALUE,VALUE,...[%N]",
            help="Submit a sweep as a job array, e.g. optimizer.lr=1e-3,2e-3,4e-3%2: all three, two at a time.",
        ),
    ] = None,
    after: Annotated[str | None, typer.Option(metavar="JOB", help="Start only after this job has succeeded.")] = None,
    dry_run: Annotated[
        bool,
        typer.Option("--dry-run", help="Check everything, print the batch script and the plan, and submit nothing."),
    ] = False,
    micro_batch: MicroBatch = None,
    workers: Workers = None,
    audit: Annotated[
        int | None,
        typer.Option(
            metavar="EVERY",
            help="At every so many steps, let processes repeat each other's part of the step. A node that computes "
            "something else than the others is named and excluded.",
            min=1,
        ),
    ] = None,
    cluster: Annotated[
        str | None,
        typer.Option(
            help="A profile in clusters.toml, or `local` for this machine without SLURM.", rich_help_panel=_RESOURCES
        ),
    ] = None,
    nodes: Annotated[
        str,
        typer.Option(
            help="Number of nodes, or a range: 2-8 takes as many as are free at each start.",
            rich_help_panel=_RESOURCES,
        ),
    ] = "1",
    gpus_per_node: Annotated[
        int | None,
        typer.Option(
            help="GPUs per node; each runs one process. Default: as in the profile, or 1.",
            min=0,
            rich_help_panel=_RESOURCES,
        ),
    ] = None,
    gpu_type: Annotated[
        str | None,
        typer.Option(
            help="SLURM's name of a type of GPU, e.g. a100. Default: as in the profile, or any.",
            rich_help_panel=_RESOURCES,
        ),
    ] = None,
    partition: Annotated[
        str | None,
        typer.Option(
            help="A partition, or several with commas: the first that is free. Default: as in the profile, or SLURM's.",
            rich_help_panel=_RESOURCES,
        ),
    ] = None,
    time: Annotated[
        str | None,
        typer.Option(
            help="Time limit of each start in SLURM's notation. A longer run requeues itself before the limit.",
            rich_help_panel=_RESOURCES,
        ),
    ] = None,
) -> None:
    """Submit runs to SLURM. They save and requeue themselves at the time limit, when preempted and after failures."""
    from launcher.jobs.planned_runs import SubmitOptions
    from launcher.jobs.submit import submit as submit_runs

    options = SubmitOptions(
        data=data,
        modules=tuple(modules or []),
        run_dir=run_dir,
        cluster=cluster,
        nodes=nodes,
        gpus_per_node=gpus_per_node,
        gpu_type=gpu_type,
        partition=partition,
        time=time,
        sweep=array,
        after=after,
        micro_batch=micro_batch,
        workers=workers,
        audit=audit,
    )
    submit_runs(recipes, options, dry_run)


@jobs.command(epilog="Example: bigbatch runs", rich_help_panel=_PANEL)
def runs(
    folder: Annotated[
        Path,
        typer.Argument(callback=on_this_machine, metavar="FOLDER", help="The folder that holds the run directories."),
    ] = Path("runs"),
    watch: Annotated[
        bool, typer.Option("--watch", help="Bring the table up to date every ten seconds until Ctrl-C.")
    ] = False,
) -> None:
    """List the runs with state, job, nodes, step, speed, accuracy, remaining time and restarts."""
    from launcher.runs.runs_table import print_runs

    print_runs(folder, watch)


@jobs.command(epilog="Example: bigbatch logs runs/convnext_tiny_in1k --rank 3", rich_help_panel=_PANEL)
def logs(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Keep printing new lines until the job ends.")] = False,
    rank: Annotated[int, typer.Option(help="The process whose log is printed.", min=0)] = 0,
) -> None:
    """Print the log of a submitted run. If the run failed, its first failure comes first."""
    from launcher.jobs.logs import print_log

    print_log(run, rank, follow)


@jobs.command(epilog="Example: bigbatch cancel runs/convnext_tiny_in1k", rich_help_panel=_PANEL)
def cancel(run: RunArgument) -> None:
    """Cancel the job of a submitted run. Its checkpoints stay, and `bigbatch resume` continues from them."""
    from launcher.jobs.cancel_resume import cancel_run

    cancel_run(run)


@jobs.command(epilog="Example: bigbatch resume runs/convnext_tiny_in1k", rich_help_panel=_PANEL)
def resume(run: RunArgument) -> None:
    """Submit a run again that was cancelled, failed or lost. Code and recipe stay, and it resumes at the exact step."""
    from launcher.jobs.cancel_resume import resume_run

    resume_run(run)


@jobs.command(epilog="Example: bigbatch doctor --data shards/digits", rich_help_panel=_PANEL)
def doctor(
    data: Annotated[str | None, typer.Option("--data", help="Shards to check.")] = None,
    run_dir: Annotated[
        Path, typer.Option(callback=on_this_machine, help="A folder for runs, whose disk is measured.")
    ] = Path("runs"),
) -> None:
    """Check this machine's GPUs, memory, shards, disk and SLURM. Jobs check their nodes likewise before they train."""
    from launcher.jobs.doctor import print_machine

    raise typer.Exit(0 if print_machine(data, run_dir) else 1)
