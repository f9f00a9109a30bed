"""Start and end of every program of bigbatch: a mistake is one sentence and an exit code, never a traceback.

The end of another rank is no mistake of the user, so the ranks that lose their connection to it exit with 1: on a
cluster, a job with that code starts again.
"""

import atexit
import contextlib
import errno
import gc
import io
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import typer

from data.printable_text import one_line
from launcher.processes import has_patient_parent
from launcher.world import this_process
from recipes.errors import UserCodeError, UserError

_USER_ERROR = 2
_COLLECT_AFTER = 50_000  # new objects; Python's default is 700
_HEARD = 5.0  # seconds that rank 0 has to print a mistake which another rank has met before it
# Errors of a full or read-only file system. Python does not always say which file they were about.
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)
# What gloo and NCCL say, in a RuntimeError without a class of its own, when the process at the other end is gone.
_CONNECTION_LOST = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Broken pipe",
    "remote process exited",
)


def run_command(command: Callable, file_error: int = _USER_ERROR) -> None:
    """Run a function as a program whose command line follows from the function's parameters; see `run_app`."""
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(command)
    run_app(app, file_error)


def run_app(app: typer.Typer, file_error: int = _USER_ERROR) -> None:
    """Run a program; print a mistake, or an error of the file system, as one sentence and exit.

    The exit code is 2 for a UserError and 1 where another rank is gone.

    Args:
        file_error: the exit code for an error of the file system that no code closer to it has explained, such as a
            missing permission.
    """
    _spare_imported_objects()
    _open_closed_streams()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # file names may not be text in the terminal's encoding
    threading.excepthook = _thread_ended
    # The `deepspeed` launcher adds this argument before all others, also before the name of a command. It repeats the
    # variable LOCAL_RANK.
    if sys.argv[1:2] == [f"--local_rank={os.environ.get('LOCAL_RANK')}"]:
        del sys.argv[1]
    try:
        _check_working_directory()
        app()
    except UserError as error:
        if _print_error(str(error)) and isinstance(error, UserCodeError):
            print(error.traceback, end="", file=sys.stderr)
        sys.exit(_USER_ERROR)
    except OSError as error:
        if error.filename is None and error.errno not in _NO_SPACE:
            raise  # not about a file, so probably a defect of ours
        place = f"{os.fsdecode(error.filename)}: " if error.filename is not None else ""
        prefix = "" if _is_main_process() else f"[rank {this_process().rank}] "  # other ranks may not meet it
        _print_error(f"{prefix}{place}{error.strerror or error}")
        sys.exit(file_error)
    except RuntimeError as error:
        if not any(sign in str(error) for sign in _CONNECTION_LOST):
            raise
        rank = this_process().rank
        print(f"error: [rank {rank}] another rank ended too early: its error is the one to look at", file=sys.stderr)
        sys.exit(1)


def _spare_imported_objects() -> None:
    """Keep Python's garbage collector from walking over what is imported, again and again.

    torch, timm and the rest make 450,000 objects, none of which is garbage. Walking over all of them several times
    during the imports, and twice at the end, took almost half of the processor time of a program that only imports.
    """
    gc.set_threshold(_COLLECT_AFTER)
    atexit.register(gc.freeze)  # the last collections leave out what is frozen


def _open_closed_streams() -> None:
    """Open the null device for each of stdin, stdout and stderr that is closed, as by ``2>&-`` in a shell.

    Their numbers would otherwise go to the next files that are opened, into which a library might print.
    """
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(number, True)
    os.close(number)
    sys.stdin = sys.stdin or os.fdopen(0, closefd=False)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _check_working_directory() -> None:
    """Refuse a working directory that was deleted, in which torch's libraries end the process with other words."""
    try:
        Path.cwd()
    except FileNotFoundError:
        raise UserError("the working directory is gone: change to a folder that exists") from None


def _thread_ended(ended: threading.ExceptHookArgs) -> None:
    """Print the traceback of a thread that has ended by an error, unless the error is about a file.

    TensorBoard writes in a thread of its own. It raises such an error once more where it gets its next value, in
    `launcher.training.trackers`, which turns it into a sentence.
    """
    if not isinstance(ended.exc_value, OSError):
        threading.__excepthook__(ended)


def _print_error(message: str) -> bool:
    """Print an error and return True, if it is this rank that has to say so."""
    # Mostly every rank meets the same mistake, so only rank 0 prints it. A mistake that only some ranks meet starts
    # with the rank's number.
    if not (message.startswith("[rank") or _is_main_process()):
        # torchrun, accelerate, deepspeed and srun end rank 0 as soon as another rank has failed.
        if not has_patient_parent():
            with contextlib.suppress(KeyboardInterrupt):
                time.sleep(_HEARD)
        return False
    print(f"error: {one_line(message)}", file=sys.stderr)
    return True


def _is_main_process() -> bool:
    try:
        # An srun whose variables are the mistake has numbered its tasks all the same.
        return this_process().is_main and os.environ.get("SLURM_PROCID", "0") == "0"
    except UserError:  # the mistake is in the variables that give the rank
        return True
