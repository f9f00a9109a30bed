"""How every program of bigbatch starts and ends: a user's mistake is one sentence on stderr and exit code 2."""

import sys
from collections.abc import Callable

import typer

from launcher.world import this_process
from recipes.errors import UserError


def run_command(command: Callable) -> None:
    """Run one function as a program whose arguments are the function's parameters."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """Run a program; exit with 2 where the user has to change something."""
    try:
        app()
    except UserError as error:
        # All ranks meet the same mistake: one of them says so. What only some met names its rank.
        if str(error).startswith("[rank") or _is_main_process():
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _is_main_process() -> bool:
    try:
        return this_process().is_main
    except UserError:  # the variables that would say so are the mistake
        return True
