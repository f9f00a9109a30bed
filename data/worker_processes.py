"""Worker processes: how they end with their parent, and what to tell the user when one dies or cannot start."""

import errno
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from multiprocessing.process import BaseProcess

from data.exit_codes import describe_exit
from recipes.errors import UserError

# Forked workers share what the parent has imported and allocated. Only on Linux is a fork safe.
CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")

_SECONDS_BETWEEN_LOOKS = 0.2


def end_with_parent(parent: int) -> None:
    """End this process soon after its parent, process `parent`, has died.

    A killed parent cannot tell its children. Workers that live on would hold memory and files that the next start
    needs.
    """

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def cause_of_death(processes: Iterable[BaseProcess]) -> str | None:
    """Return how the first failed process ended, e.g. "ended with exit code 1"; None if none has failed."""
    codes = [process.exitcode for process in processes if process.exitcode]
    # A pool terminates its other workers when one has died, so signal 15 names the cause only if there is no other
    # code.
    code = next((code for code in codes if code != -signal.SIGTERM), codes[0] if codes else None)
    return None if code is None else describe_exit(code)


@contextmanager
def starting_processes(fewer: str) -> Iterator[list[BaseProcess]]:
    """Yield a list that receives the processes started in the block when the block ends.

    Raises:
        UserError: the system does not let them start; `fewer` says how to ask for fewer, e.g. "fewer --workers".
    """
    before, started = multiprocessing.active_children(), list[BaseProcess]()
    try:
        yield started
    except (OSError, RuntimeError) as error:
        for child in multiprocessing.active_children():
            if child not in before:
                child.kill()  # it would wait for tasks for ever, and Python would wait for it at its exit
        raise UserError(why_no_start(error, fewer)) from None
    started += [child for child in multiprocessing.active_children() if child not in before]


def why_no_start(error: OSError | RuntimeError, fewer: str) -> str:
    """Return a sentence on workers that the system does not let start.

    Args:
        error: what starting them raised.
        fewer: how to ask for fewer workers, e.g. "fewer --workers".
    """
    number = error.errno if isinstance(error, OSError) else None
    reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
    if number in (errno.ENOSPC, errno.ENOENT, errno.EACCES, errno.EROFS):
        # Their queues are guarded by named semaphores, which are small files in /dev/shm.
        return (
            f"worker processes cannot start, because no file can be created in /dev/shm ({reason}): make room there "
            f"(in a container with `--shm-size`), or give {fewer}"
        )
    if number in (errno.EMFILE, errno.ENFILE):
        return f"worker processes cannot start, because too many files are open: raise `ulimit -n`, or give {fewer}"
    if number == errno.ENOMEM:
        return f"worker processes cannot start, because there is not enough memory: give {fewer}"
    return f"worker processes cannot start ({reason}): allow more processes (`ulimit -u`), or give {fewer}"


def shared_memory_problem(workers: int = 16) -> str | None:
    """Return what keeps so many workers from starting here, as a sentence; None if nothing does."""
    try:
        queues = [CONTEXT.Queue() for _ in range(workers + 1)]
    except OSError as error:
        return why_no_start(error, "fewer --workers")
    for queue in queues:
        queue.close()
    return None
