"""The `bigbatch` command.

Each command imports the modules it needs when it runs, because torch takes seconds to import and `--help` has to be
instant.
"""

from importlib.metadata import version
from typing import Annotated

import typer

from launcher.cli.completion import catalogue_names
from launcher.cli.data import data
from launcher.cli.entry import run_app
from launcher.cli.experiments import experiments
from launcher.cli.jobs import jobs
from launcher.cli.options import Overrides
from launcher.cli.planning import planning
from launcher.cli.results import results
from launcher.cli.training import training

app = typer.Typer(
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    help="Train large-batch image-classification recipes. A recipe fixes the batch and the result; the hardware only "
    "decides how the batch is cut.",
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"bigbatch {version('bigbatch')}")
        raise typer.Exit


@app.callback()
def _options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Print the version and exit.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Take the options that come before a command."""


@app.command(
    epilog="Example: bigbatch recipes convnext_tiny_in1k optimizer.lr=2e-3", rich_help_panel="Recipes and data"
)
def recipes(
    name: Annotated[
        str | None,
        typer.Argument(
            metavar="RECIPE", help="The recipe to print in full.", show_default=False, autocompletion=catalogue_names
        ),
    ] = None,
    overrides: Overrides = None,
) -> None:
    """List the recipes, or print one as YAML with every default."""
    from launcher.cli.recipes import print_recipe, print_table

    if name:
        print_recipe(name, overrides or [])
    else:
        print_table()


for group in (data, training, results, experiments, planning, jobs):
    app.add_typer(group)


def main() -> None:
    """Run the `bigbatch` command."""
    run_app(app)
