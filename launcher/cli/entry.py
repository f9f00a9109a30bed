"""Start and end of every program of bigbatch: a user's mistake is one sentence on stderr and exit code 2."""

import sys
from collections.abc import Callable

import typer

from launcher.world import this_process
from recipes.errors import UserError


def run_command(command: Callable) -> None:
    """Run a function as a program whose command line follows from the function's parameters."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """Run a program; print a UserError as one sentence and exit with code 2."""
    try:
        app()
    except UserError as error:
        # Mostly every rank meets the same mistake, so only rank 0 prints it. A mistake that only some ranks meet starts
        # with the rank's number.
        if str(error).startswith("[rank") or _is_main_process():
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def _is_main_process() -> bool:
    try:
        return this_process().is_main
    except UserError:  # the mistake is in the variables that give the rank
        return True
