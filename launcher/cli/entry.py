"""Start and end of every program of bigbatch: a user's mistake is one sentence on stderr and exit code 2.

The end of another rank is no mistake of the user, so the ranks that lose their connection to it exit with 1: on a
cluster, a job with that code starts again.
"""

import os
import sys
from collections.abc import Callable

import typer

from launcher.world import this_process
from recipes.errors import UserError

# What gloo and NCCL say, in a RuntimeError without a class of its own, when the process at the other end is gone.
_CONNECTION_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited",
)


def run_command(command: Callable) -> None:
    """Run a function as a program whose command line follows from the function's parameters."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    run_app(app)


def run_app(app: typer.Typer) -> None:
    """Run a program; print a UserError as one sentence and exit with code 2, and with 1 where another rank is gone."""
    try:
        app()
    except UserError as error:
        # Mostly every rank meets the same mistake, so only rank 0 prints it. A mistake that only some ranks meet starts
        # with the rank's number.
        if str(error).startswith("[rank") or _is_main_process():
            print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _CONNECTION_LOST):
            raise
        rank = this_process().rank
        print(f"error: [rank {rank}] another rank ended too early: its error is the one to look at", file=sys.stderr)
        sys.exit(1)


def _is_main_process() -> bool:
    try:
        # An srun whose variables are the mistake has numbered its tasks all the same.
        return this_process().is_main and os.environ.get("SLURM_PROCID", "0") == "0"
    except UserError:  # the mistake is in the variables that give the rank
        return True
