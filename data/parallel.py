"""One function over many tasks in worker processes that stop at once: on an error, on Ctrl-C, when the parent dies."""

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool

from data.cpus import usable_cpus
from data.progress import progress
from recipes.errors import UserError

# Forked workers share what the parent imported and listed; elsewhere than on Linux a fork is not safe.
_CONTEXT = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")


class Stopped(Exception):
    """The work is no longer wanted."""


class Worker:
    """What a task sees besides its own arguments: what all tasks share, and where it reports progress."""

    def __init__(self, shared, done, stop):
        self.shared, self._done, self._stop = shared, done, stop

    def advance(self, units: int = 1) -> None:
        """Count units as done. Call it often: it is also where an unwanted worker stops."""
        if self._stop.is_set():
            raise Stopped
        with self._done.get_lock():
            self._done.value += units


def for_each(
    task: Callable, arguments: Sequence, shared, workers: int | None, what: str, total: int, unit: str, shown: bool
) -> Iterator:
    """Yield ``task(worker, argument)`` for each argument, in any order, run in `workers` processes.

    Args:
        task: a module-level function.
        shared: given to every process once, as ``worker.shared``.
        workers: number of processes; None: one per usable core.
        what, total, unit, shown: of the progress display; tasks report with ``worker.advance``.

    Raises:
        UserError: the system killed a worker; or whatever a task raises.
    """
    done, stop = _CONTEXT.Value("q", 0), _CONTEXT.Event()
    pool = ProcessPoolExecutor(
        max_workers=max(1, min(workers or usable_cpus(), len(arguments))),
        mp_context=_CONTEXT,
        initializer=_start,
        initargs=(shared, done, stop, os.getpid()),
    )
    try:
        # Forks here, before the progress display starts its thread.
        pending = {pool.submit(_run, task, argument) for argument in arguments}
        with progress(what, total, unit, shown) as update:
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                update(done.value)
                for future in finished:
                    yield future.result()
    except BrokenProcessPool:
        raise UserError(
            "the system killed a worker process, most likely for want of memory: "
            "run the same command again with fewer workers, it goes on where it stopped"
        ) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


_worker: Worker | None = None


def _start(shared, done, stop, parent: int) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent, which stops us
    threading.Thread(target=_die_with, args=(parent,), daemon=True).start()
    _worker = Worker(shared, done, stop)


def _die_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.2)
    os._exit(1)  # a killed parent must not leave a writer behind that meets its successor


def _run(task: Callable, argument):
    return task(_worker, argument)
