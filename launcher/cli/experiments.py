"""The commands that use the exactness of runs: branch."""

import shlex
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.options import DataOption, Overrides, RunArgument, with_data
from launcher.runs.run_directory import RunDirectory

experiments = typer.Typer()
_PANEL = "Experiments"


@experiments.command(epilog="Example: bigbatch branch runs/demo runs/longer schedule.epochs=40", rich_help_panel=_PANEL)
def branch(
    run: RunArgument,
    new: Annotated[Path, typer.Argument(metavar="NEW", help="The run directory to make.", show_default=False)],
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
    from launcher.training.branch import branch as make_branch
    from launcher.training.branch import describe_branch

    recipe = make_branch(parent, new, at_step, with_data(overrides, data))
    for sentence in describe_branch(recipe, parent, RunDirectory(new)):
        print(sentence)
    print(f"train it with: {shlex.join(['bigbatch', 'train', str(new / 'recipe.yaml'), '--run-dir', str(new)])}")
