"""The commands that use the exactness of runs: branch, compare, replay, diff."""

import json
import shlex
import sys
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.options import DataOption, Overrides, RunArgument, SplitName, Workers, on_this_machine, with_data
from launcher.cli.training import INTERRUPTED, processes_to_start, take_srun_as_launcher
from launcher.processes import option_arguments, run_processes, stop_with_parent
from launcher.runs.run_directory import RunDirectory
from launcher.world import this_process
from recipes.errors import UserError

experiments = typer.Typer()
_PANEL = "Experiments"

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


class ReplayCut(StrEnum):
    """How `replay` cuts the batch."""

    as_was = "as-was"
    here = "here"


@experiments.command(epilog="Example: bigbatch branch runs/demo runs/longer schedule.epochs=40", rich_help_panel=_PANEL)
def branch(
    run: RunArgument,
    new: Annotated[
        Path,
        typer.Argument(callback=on_this_machine, metavar="NEW", help="The run directory to make.", show_default=False),
    ],
    overrides: Overrides = None,
    at_step: Annotated[
        int | None,
        typer.Option(help="The step of the run's checkpoint at which the branch begins. Default: the newest.", min=1),
    ] = None,
    data: DataOption = None,
) -> None:
    """Make a run that shares the steps of another one up to a checkpoint, and differs from there on."""
    parent = RunDirectory(run)
    parent.recipe()  # a mistaken path is refused before torch is imported, which takes seconds
    from launcher.experiments.branch import branch as make_branch
    from launcher.experiments.branch import describe_branch

    recipe = make_branch(parent, new, at_step, with_data(overrides, data))
    for sentence in describe_branch(recipe, parent, RunDirectory(new)):
        print(sentence)
    print(f"train it with: {shlex.join(['bigbatch', 'train', str(new / 'recipe.yaml'), '--run-dir', str(new)])}")


@experiments.command(epilog="Example: bigbatch compare runs/demo runs/hotter", rich_help_panel=_PANEL)
def compare(
    runs: Annotated[
        list[Path], typer.Argument(callback=on_this_machine, metavar="RUN", help="Two or more run directories.")
    ],
    seeds: Annotated[
        bool, typer.Option("--seeds", help="Also compare the means of runs that differ in their seed only.")
    ] = False,
    split: Annotated[SplitName, typer.Option(help="The split on which the runs were evaluated.")] = SplitName.val,
    as_json: JsonOption = False,
) -> None:
    """Compare runs on the same images: intervals, McNemar's test, and means over seeds."""
    from launcher.cli.comparison_output import print_comparison, print_seed_groups
    from launcher.runs.comparison import compare_runs, group_by_seed

    compared = compare_runs(runs, split.value)
    groups = group_by_seed(compared) if seeds else []
    if as_json:
        print(json.dumps({"runs": [one.to_dict() for one in compared], "groups": [one.to_dict() for one in groups]}))
        return
    print_comparison(compared)
    if groups:
        print_seed_groups(groups)


@experiments.command(epilog="Example: bigbatch replay runs/demo --step 5", rich_help_panel=_PANEL)
def replay(
    run: RunArgument,
    step: Annotated[int, typer.Option(help="The first step to recompute, from 1.", min=1, show_default=False)],
    steps: Annotated[int, typer.Option(help="Number of steps.", min=1)] = 1,
    cut: Annotated[
        ReplayCut,
        typer.Option(help="Cut the batch as the run did (compares bits on equal hardware), or as this machine would."),
    ] = ReplayCut.as_was,
    data: Annotated[
        str | None, typer.Option("--data", help="Where the shards of the run are now.", show_default=False)
    ] = None,
    workers: Workers = None,
    as_json: JsonOption = False,
) -> None:
    """Recompute steps of a run and compare them with its record. The exit code is 1 if a step differs.

    Ctrl-C stops after the current step, and the steps up to it are compared.
    """
    from launcher.cli.trajectory_output import print_replayed
    from launcher.experiments.replay import replay as recompute
    from launcher.experiments.replay_plan import plan_replay

    stop_with_parent()
    plan = plan_replay(RunDirectory(run), step, steps, data)
    take_srun_as_launcher()
    processes = 1 if this_process().is_launched else _processes_of_replay(plan.processes_then, cut)
    if processes > 1:
        given = {"--step": step, "--steps": steps, "--cut": cut.value, "--data": data, "--workers": workers}
        options = option_arguments(given)
        flags = ["--json"] if as_json else []
        raise typer.Exit(run_processes("launcher", ["replay", str(run), *options, *flags], processes))
    is_main = this_process().is_main
    try:
        replayed = recompute(plan, cut == ReplayCut.here, workers)
    except KeyboardInterrupt:  # before the first step, or a second Ctrl-C
        if is_main:
            print("stopped, and nothing was compared", file=sys.stderr)
        raise typer.Exit(INTERRUPTED) from None
    if is_main:
        if as_json:
            print(json.dumps(replayed.to_dict()))
        else:
            print_replayed(replayed)
    if replayed.difference:
        raise typer.Exit(1)
    if replayed.end < plan.end:
        if is_main:
            print(f"stopped after step {replayed.end} of {plan.end}", file=sys.stderr)
        raise typer.Exit(INTERRUPTED)


def _processes_of_replay(then: int, cut: ReplayCut) -> int:
    """Return the number of processes to start: as many as the run had, or as many as this machine would use.

    Raises:
        UserError: the run had more processes than there are GPUs here.
    """
    if cut == ReplayCut.here:
        return processes_to_start(None)
    try:
        return processes_to_start(then)
    except UserError:
        raise UserError(f"the run had {then} processes, more than there are GPUs here: use --cut here") from None


@experiments.command(epilog="Example: bigbatch diff runs/demo runs/longer", rich_help_panel=_PANEL)
def diff(
    first: RunArgument,
    second: Annotated[
        Path, typer.Argument(callback=on_this_machine, metavar="RUN", help="The run directory to compare with it.")
    ],
    as_json: JsonOption = False,
) -> None:
    """Say what differs between two runs, and the first step and the first part of it in which they diverge."""
    for run in (first, second):
        RunDirectory(run).recipe()  # a mistaken path is refused before torch is imported, which takes seconds
    from launcher.cli.trajectory_output import print_run_difference
    from launcher.experiments.run_difference import compare_trajectories

    found = compare_trajectories(RunDirectory(first), RunDirectory(second))
    if as_json:
        print(json.dumps(found.to_dict()))
    else:
        print_run_difference(found)
