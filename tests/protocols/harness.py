"""Protocols between processes over the file system, with a pause or a kill before every file operation in turn.

A protocol is what several processes do in one folder at the same time, and a promise about the folder afterwards. First
all processes run undisturbed, and their file operations are counted. Then, for every operation of every process, all
run again: that process pauses before the operation, long enough for the others to get as far as they can, or it is
killed there by SIGKILL, as by the system when memory is short. After a kill the others are ended, as a launcher does,
and the same command is given again.

The operations are real. They are counted through Python's audit hook (open, rename, unlink, mkdir, listdir, lock, ...),
and by wrapping the two that raise no audit event, `os.stat` and `os.fsync`.
"""

import itertools
import multiprocessing
import os
import random
import signal
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from queue import Empty
from typing import Any

_FORK = multiprocessing.get_context("fork")
_PAUSE = 0.15  # seconds; the others need a few milliseconds
_AFTER_A_KILL = 0.3  # seconds that a launcher gives the others
_PATIENCE = 60.0  # seconds after which a process hangs
_ON_DESCRIPTORS = ("fcntl.flock", "fcntl.lockf", "os.truncate")
_DRIVERS = 6  # processes that try interleavings at the same time: most of the time is spent in pauses


@dataclass(frozen=True)
class Protocol:
    """What `world_size` processes do in a folder.

    Attributes:
        name: as printed.
        world_size: number of processes.
        prepare: makes what is there before they start.
        act: what one process does, called with the folder, its rank, and a barrier of all processes.
        promise: checks the folder after all have ended, called with the folder and whether one process was killed;
            raises AssertionError. After a kill the processes run once more, undisturbed, and it is checked again.
    """

    name: str
    world_size: int
    prepare: Callable[[Path], None]
    act: Callable[[Path, int, Any], None]
    promise: Callable[[Path, bool], None]


@dataclass(frozen=True)
class Disturbance:
    """`action` ("pause" or "kill") before operation number `operation` of process `rank`."""

    rank: int
    operation: int
    action: str


class _Tripwire:
    """Counts the file operations of this process in a folder, and does something before one of them."""

    def __init__(self, folder: Path, at: int | None, action: str):
        self.folder, self.at, self.action = str(folder), at, action
        self.count = 0
        self._inside = threading.local()
        sys.addaudithook(self._audited)
        self._stat, self._fsync = os.stat, os.fsync
        os.stat, os.fsync = self._stat_counted, self._fsync_counted

    def _audited(self, event: str, arguments: tuple) -> None:
        if event in _ON_DESCRIPTORS:
            self._step()
        elif event == "open" or event.startswith(("os.", "shutil.")):
            paths = [one for one in arguments[:2] if isinstance(one, str | os.PathLike)]
            if any(map(self._concerns, paths)):
                self._step()

    def _concerns(self, path: Any) -> bool:
        return str(path).startswith(self.folder)

    def _stat_counted(self, path: Any, *arguments: Any, **options: Any) -> os.stat_result:
        if isinstance(path, str | os.PathLike) and self._concerns(path):
            self._step()
        return self._stat(path, *arguments, **options)

    def _fsync_counted(self, descriptor: Any) -> None:
        self._step()
        self._fsync(descriptor)

    def _step(self) -> None:
        if getattr(self._inside, "yes", False):
            return
        self._inside.yes = True
        try:
            self.count += 1
            if self.count == self.at:
                if self.action == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)
                time.sleep(_PAUSE)
        finally:
            self._inside.yes = False


def try_all(protocol: Protocol, folder: Path, only: int | None = None, seed: int = 0) -> tuple[int, list[str]]:
    """Try the protocol with every disturbance; return how many were tried, and a sentence for each broken promise.

    Args:
        folder: an empty folder for all tries.
        only: so many disturbances, chosen by `seed`, instead of all.
    """
    chosen = disturbances(protocol, folder / "undisturbed")
    if only is not None and only < len(chosen):
        chosen = random.Random(seed).sample(chosen, only)
    shares = [chosen[number::_DRIVERS] for number in range(_DRIVERS)]
    found: Any = _FORK.Queue()
    drivers = [
        _FORK.Process(target=_drive, args=(protocol, folder / f"driver-{number}", share, found))
        for number, share in enumerate(shares)
        if share
    ]
    for driver in drivers:
        driver.start()
    problems = [problem for _ in drivers for problem in found.get(timeout=_PATIENCE * (2 + len(chosen)))]
    for driver in drivers:
        driver.join()
    return len(chosen), problems


def disturbances(protocol: Protocol, folder: Path) -> list[Disturbance]:
    """Run the protocol undisturbed, and return a pause and a kill for each operation of each process."""
    counts, problem = _run(protocol, folder, None)
    assert problem is None, f"{protocol.name}, undisturbed: {problem}"
    places = [(rank, number + 1) for rank, count in enumerate(counts) for number in range(count)]
    return [Disturbance(*place, action) for place, action in itertools.product(places, ("pause", "kill"))]


def _drive(protocol: Protocol, folder: Path, chosen: list[Disturbance], found: Any) -> None:
    problems = []
    for number, disturbance in enumerate(chosen):
        _, problem = _run(protocol, folder / str(number), disturbance)
        if problem:
            problems.append(f"{protocol.name}, {disturbance}: {problem}")
    found.put(problems)


def _run(protocol: Protocol, folder: Path, disturbance: Disturbance | None) -> tuple[list[int], str | None]:
    """Return how many operations each process did, and what went wrong."""
    folder.mkdir(parents=True)
    protocol.prepare(folder)
    counts, problem = _start(protocol, folder, disturbance)
    killed = disturbance is not None and disturbance.action == "kill"
    try:
        if problem is None:
            protocol.promise(folder, killed)
        if problem is None and killed:
            _, problem = _start(protocol, folder, None)
            problem = problem and f"given again: {problem}"
            if problem is None:
                protocol.promise(folder, False)
    except AssertionError as error:
        problem = f"promise broken: {error}"
    except Exception:
        problem = f"the check failed: {traceback.format_exc()}"
    return counts, problem


def _start(protocol: Protocol, folder: Path, disturbance: Disturbance | None) -> tuple[list[int], str | None]:
    barrier, said = _FORK.Barrier(protocol.world_size), _FORK.Queue()
    processes = []
    for rank in range(protocol.world_size):
        mine = disturbance if disturbance and disturbance.rank == rank else None
        processes.append(_FORK.Process(target=_process, args=(protocol, folder, rank, barrier, mine, said)))
        processes[-1].start()
    deadline = time.monotonic() + _PATIENCE
    victim = processes[disturbance.rank] if disturbance and disturbance.action == "kill" else None
    while any(process.is_alive() for process in processes) and time.monotonic() < deadline:
        if victim is not None and victim.exitcode == -signal.SIGKILL:
            deadline = min(deadline, time.monotonic() + _AFTER_A_KILL)
            victim = None
        time.sleep(0.005)
    hung = [rank for rank, process in enumerate(processes) if process.is_alive()]
    for process in processes:
        process.kill()
        process.join()
    told = dict(_all_of(said))
    counts = [told.get(rank, (0, None))[0] for rank in range(protocol.world_size)]
    if disturbance and disturbance.action == "kill":
        return counts, None  # what the others say then is said again, or not, by the next start
    if hung:
        return counts, f"ranks {hung} hang"
    return counts, next((f"rank {rank} failed: {problem}" for rank, (_, problem) in told.items() if problem), None)


def _all_of(said: Any) -> Iterator[tuple[int, tuple[int, str | None]]]:
    while True:
        try:
            yield said.get(timeout=0.05)
        except Empty:
            return


def _process(protocol: Protocol, folder: Path, rank: int, barrier: Any, mine: Disturbance | None, said: Any) -> None:
    warnings.simplefilter("error", UserWarning)  # a checkpoint that looks damaged is a warning
    tripwire = _Tripwire(folder, mine.operation if mine else None, mine.action if mine else "")
    problem = None
    try:
        protocol.act(folder, rank, barrier)
    except BaseException:
        problem = traceback.format_exc()
    said.put((rank, (tripwire.count, problem)))
