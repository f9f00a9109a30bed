"""The commands that train: train; lr, a range test; fingerprint, which shows that two cuts train on the same inputs."""

import os
import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.options import (
    DataOption,
    Import,
    MicroBatch,
    Overrides,
    Procs,
    RecipeArgument,
    Workers,
    load_recipe,
    on_this_machine,
    print_lr_note,
)
from launcher.processes import option_arguments, run_processes, stop_with_parent
from launcher.world import this_process
from recipes.errors import UserError
from recipes.schema import Recipe

training = typer.Typer()
_PANEL = "Training and results"
INTERRUPTED = 130  # the shell's exit code for Ctrl-C


@training.command(
    epilog="Example: bigbatch train demo --data shards/digits --procs 2 optimizer.lr=2e-3", rich_help_panel=_PANEL
)
def train(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    data: DataOption = None,
    modules: Import = None,
    run_dir: Annotated[
        Path | None,
        typer.Option(
            callback=on_this_machine,
            help="The run directory. A run that it holds already is resumed. Default: runs/RECIPE.",
        ),
    ] = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Check the recipe, its shards and weights, print the cut of the batch (and with ZeRO DeepSpeed's "
            "JSON), and exit.",
        ),
    ] = False,
    procs: Procs = None,
    micro_batch: MicroBatch = None,
    workers: Workers = None,
    profile: Annotated[
        int | None,
        typer.Option(help="Profile that many micro-batches and write time shares and a trace to RUN/profile.", min=1),
    ] = None,
) -> None:
    """Train a recipe, or resume its run at the exact step. Ctrl-C saves a checkpoint and stops."""
    resolved = load_recipe(recipe, overrides, data, modules)
    run_path = run_dir or Path("runs") / resolved.name
    if dry_run:
        processes_to_start(procs)  # refuses what the start would refuse
        if this_process().is_main:
            print_lr_note(resolved)
        from launcher.runs.run_directory import RunDirectory
        from launcher.training.dry_run import print_dry_run

        print_dry_run(resolved, RunDirectory(run_path), procs, micro_batch)
        return
    from launcher.recipe_shards import check_names_shards

    check_names_shards(resolved)  # before torch is imported, which takes seconds
    take_srun_as_launcher()
    processes = processes_to_start(procs)
    if processes > 1:
        options = option_arguments(
            {
                "--data": data,
                "--run-dir": run_dir,
                "--micro-batch": micro_batch,
                "--workers": workers,
                "--profile": profile,
                "--import": modules,
            }
        )
        code = run_processes("launcher.train", [recipe, *(overrides or []), *options], processes)
    else:
        if this_process().is_main:
            print_lr_note(resolved)
        code = _train_here(resolved, run_path, micro_batch, workers, profile)
    if code == INTERRUPTED and not this_process().is_launched:
        print(f"resume with: {shlex.join(['bigbatch', *sys.argv[1:]])}", file=sys.stderr)
    raise typer.Exit(code)


@training.command(
    epilog="Example: bigbatch lr demo --data shards/digits --out lr.html",
    rich_help_panel=_PANEL,
)
def lr(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    data: DataOption = None,
    modules: Import = None,
    start: Annotated[
        float | None,
        typer.Option("--from", help="Learning rate of the first step. Default: a thousandth of the recipe's."),
    ] = None,
    end: Annotated[
        float | None, typer.Option("--to", help="Learning rate of the last step. Default: 30 times the recipe's.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Number of optimizer steps.", min=20)] = 100,
    out: Annotated[
        Path | None,
        typer.Option(callback=on_this_machine, help="Also write an HTML page with the curve.", show_default=False),
    ] = None,
    procs: Procs = None,
    micro_batch: MicroBatch = None,
    workers: Workers = None,
) -> None:
    """Try learning rates: train the recipe's first steps with a rising one, and suggest a peak. No run is kept."""
    resolved = load_recipe(recipe, overrides, data, modules)
    from launcher.recipe_shards import check_names_shards
    from launcher.runs.output_file import PAGE_ENDINGS, check_output

    check_names_shards(resolved)  # before torch is imported, which takes seconds
    if out:
        check_output(out, PAGE_ENDINGS)
    take_srun_as_launcher()
    processes = processes_to_start(procs)
    if processes > 1:
        options = option_arguments(
            {
                "--data": data,
                "--from": start,
                "--to": end,
                "--steps": steps,
                "--out": out,
                "--micro-batch": micro_batch,
                "--workers": workers,
                "--import": modules,
            }
        )
        raise typer.Exit(run_processes("launcher", ["lr", recipe, *(overrides or []), *options], processes))
    if this_process().is_main:
        print_lr_note(resolved)
    from launcher.cli.lr_output import conclusions, print_lr_test
    from launcher.experiments.lr_range_test import LrRange, lr_range_test
    from launcher.runs.lr_page import write_lr_page

    stop_with_parent()
    try:
        test = lr_range_test(resolved, LrRange(start, end, steps, micro_batch, workers))
    except KeyboardInterrupt:  # Ctrl-C before the first step, or a second one
        raise typer.Exit(INTERRUPTED) from None
    if this_process().is_main and test.curve.losses:
        print_lr_test(test)
        if out:
            print(f"wrote {write_lr_page(resolved, test.curve, test.setting, conclusions(test), out)}")
    raise typer.Exit(INTERRUPTED if test.was_stopped else 0)


@training.command(
    epilog="Example: bigbatch fingerprint demo --data shards/digits --procs 3 --micro-batch 20 --steps 2",
    rich_help_panel=_PANEL,
)
def fingerprint(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    data: DataOption = None,
    modules: Import = None,
    steps: Annotated[int, typer.Option(help="Number of optimizer steps.", min=1)] = 3,
    start: Annotated[int, typer.Option("--from-step", help="The first step.", min=0)] = 0,
    procs: Annotated[int, typer.Option(help="Cut the batch as for this many processes.", min=1)] = 1,
    micro_batch: MicroBatch = None,
    workers: Workers = 0,
) -> None:
    """Print a digest of all inputs of each step. It is the same on every machine and for every cut."""
    resolved = load_recipe(recipe, overrides, data, modules)
    from launcher.training.fingerprint import fingerprints

    for step, digest in fingerprints(resolved, range(start, start + steps), procs, micro_batch, workers or 0):
        print(f"step {step}  {digest}", flush=True)


def take_srun_as_launcher() -> None:
    """Let the tasks of an srun find each other as ranks, e.g. after `srun bigbatch train`.

    Raises:
        UserError: SLURM's variables are incomplete, or a node's tasks are not one per GPU.
    """
    if "SLURM_STEP_NUM_TASKS" in os.environ:
        from slurm.srun_step import step_variables

        os.environ.update(step_variables(os.environ))


def processes_to_start(procs: int | None) -> int:
    """Return the number of training processes; 1 means that this process trains.

    Raises:
        UserError: `--procs` is given although a launcher started this process, or exceeds the visible GPUs.
    """
    if this_process().is_launched:
        if procs is not None:
            raise UserError(
                "--procs starts processes, but a launcher (torchrun, accelerate) started this one already: leave it out"
            )
        return 1
    import torch

    gpus = torch.cuda.device_count()
    if procs is not None and gpus and procs > gpus:
        # NCCL refuses two ranks on one GPU, with a message that does not say so.
        raise UserError(
            f"--procs {procs} needs as many GPUs, and {gpus} {'is' if gpus == 1 else 'are'} visible here: "
            f"use --procs {gpus}"
        )
    return procs or max(1, gpus)


def _train_here(
    recipe: Recipe, run_path: Path, micro_batch: int | None, workers: int | None, profile: int | None
) -> int:
    """Train in this process and return the exit code."""
    from launcher.training.train import StartOptions
    from launcher.training.train import train as train_recipe

    try:
        options = StartOptions(micro_batch=micro_batch, workers=workers, profile=profile)
        finished = train_recipe(recipe, run_path, options)
    except KeyboardInterrupt:  # Ctrl-C before the first step, or a second one while the first still waits for the step
        if this_process().is_main:
            print(f"stopped without saving: {_resume_point(run_path)}", file=sys.stderr)
        return INTERRUPTED
    return 0 if finished else INTERRUPTED


def _resume_point(run: Path) -> str:
    """Return a clause that says where a run resumes that was not saved at its end."""
    from launcher.checkpoints.checkpoint import saved_steps
    from launcher.runs.run_directory import RunDirectory

    steps = saved_steps(RunDirectory(run).checkpoints)
    if steps:
        return f"the newest checkpoint is of step {max(steps)}"
    return "there is no checkpoint yet, so the run starts over"
