"""Running a function on many arguments in worker processes that stop on an error, on Ctrl-C, and with their parent."""

import os
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from multiprocessing.sharedctypes import Synchronized
from multiprocessing.synchronize import Event
from typing import Any, TypeVar

from data.cpus import usable_cpus
from data.progress import progress
from data.worker_processes import CONTEXT, cause_of_death, end_with_parent, starting_processes
from recipes.errors import UserError

Argument = TypeVar("Argument")
Result = TypeVar("Result")


class Stopped(Exception):
    """The parent no longer wants the result."""


class Worker:
    """The first argument of every task.

    Attributes:
        shared: the object that all tasks share.
    """

    def __init__(self, shared: Any, done: "Synchronized[int]", stop: Event):
        self.shared, self._done, self._stop = shared, done, stop

    def advance(self, units: int = 1) -> None:
        """Report units as done. Tasks call it often, because a worker can be stopped only here.

        Raises:
            Stopped: the parent no longer wants the result.
        """
        if self._stop.is_set():
            raise Stopped
        with self._done.get_lock():
            self._done.value += units


def for_each(
    task: Callable[[Worker, Argument], Result],
    arguments: Sequence[Argument],
    shared: object,
    workers: int | None,
    what: str,
    total: int,
    unit: str,
    shown: bool,
) -> Iterator[Result]:
    """Yield ``task(worker, argument)`` for each argument, in the order in which they finish.

    Args:
        task: a module-level function, which reports progress with ``worker.advance``.
        arguments: one per task.
        shared: sent to every process once; tasks find it as ``worker.shared``.
        workers: number of processes; None: one per usable CPU.
        what: title of the progress display.
        total: units of the progress display in all.
        unit: name of the units, in the plural.
        shown: whether progress is displayed.

    Raises:
        UserError: the processes cannot start, or one of them dies.
        Exception: whatever a task raises.
    """
    count = max(1, min(workers or usable_cpus(), len(arguments)))
    with starting_processes("fewer workers") as started:
        done, stop = CONTEXT.Value("q", 0), CONTEXT.Event()
        pool = ProcessPoolExecutor(count, CONTEXT, initializer=_start, initargs=(shared, done, stop, os.getpid()))
        # This forks the workers. It has to happen before the progress display starts its thread: a forked process lacks
        # all threads but one, and a lock that another thread held stays locked.
        pending = {pool.submit(_run, task, argument) for argument in arguments}
    try:
        with progress(what, total, unit, shown) as update:
            while pending:
                finished, pending = wait(pending, timeout=0.2, return_when=FIRST_COMPLETED)
                update(done.value)
                for future in finished:
                    yield future.result()
    except BrokenProcessPool:
        pool.shutdown()  # waits until all processes have ended, so that their exit codes are known
        raise UserError(
            f"a worker process {cause_of_death(started) or 'has died'}: give the same command again with fewer "
            f"workers, and it continues where it stopped"
        ) from None
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


_worker: Worker | None = None


def _start(shared: object, done: "Synchronized[int]", stop: Event, parent: int) -> None:
    global _worker
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the parent too, which then stops its workers
    end_with_parent(parent)  # a worker that lives on could write into the files of the next start
    _worker = Worker(shared, done, stop)


def _run(task: Callable[[Worker, Argument], Result], argument: Argument) -> Result:
    assert _worker is not None
    return task(_worker, argument)
