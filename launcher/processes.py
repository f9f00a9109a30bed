"""Starts the ranks of a program on this machine and waits for them.

torchrun kills its children 30 seconds after Ctrl-C, and one step of a large batch can take longer. Here the ranks have
the time that they need to finish the step and save.
"""

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

from data.cpus import usable_cpus
from data.exit_codes import describe_exit

_ROOT = str(Path(__file__).parents[1])  # the folder of bigbatch's packages, which need not be installed
_GRACE = 10.0  # seconds that the other processes have to end by themselves after one has failed
_PARENT = "BIGBATCH_PARENT"  # environment variable with the process id of the parent of `run_processes`
_WATCH_EVERY = 1.0  # seconds after which a rank checks again whether its parent is alive


def option_arguments(options: Mapping[str, object]) -> list[str]:
    """Return command-line arguments for the options that are not None, e.g. ``["--workers", "4"]``.

    An option whose value is a list is given once for each of its elements.
    """
    given = [
        (option, one)
        for option, value in options.items()
        for one in (value if isinstance(value, list) else [value])
        if one is not None
    ]
    return [str(part) for pair in given for part in pair]


def run_processes(module: str, arguments: list[str], count: int) -> int:
    """Run ``python -m module arguments`` in `count` ranks; return the exit code of the first that fails, or 0.

    Ctrl-C and SIGTERM reach the ranks, which handle them. When one rank fails, the others are killed after a grace
    period. A rank that was killed by a signal is named on stderr, and its exit code is 128 plus the signal's number, as
    in a shell.
    """
    threads = max(1, usable_cpus() // count)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "PYTHONPATH": os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")])),
        _PARENT: str(os.getpid()),
    }
    processes = []
    for rank in range(count):
        # A number of threads that the user has set is kept.
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, **shared}
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        # With `-m`, Python searches the working directory first, and a `launcher/` there would shadow bigbatch's. -P
        # prevents that.
        processes.append(subprocess.Popen([sys.executable, "-P", "-m", module, *arguments], env=environment))

    forwarded = False

    def forward(number: int, _frame: FrameType | None) -> None:
        nonlocal forwarded
        forwarded = True
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    previous = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, forward),
        # A terminal sends Ctrl-C to the ranks as well, so that forwarding it would deliver it twice.
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
    }
    try:
        rank, code = _wait(processes)
        if code < 0 and not forwarded:
            print(f"error: rank {rank} {_death(code)}", file=sys.stderr)
        return code if code >= 0 else 128 - code
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait(processes: list[subprocess.Popen[bytes]]) -> tuple[int, int]:
    """Wait until all processes have ended, or `_GRACE` seconds after the first failure.

    Returns rank and exit code of the first failure, or (0, 0). The code of a rank that was killed is the negative
    number of the signal.
    """
    failure, deadline = (0, 0), float("inf")
    while True:
        running = any(process.poll() is None for process in processes)
        failures = [(rank, process.returncode) for rank, process in enumerate(processes) if process.returncode]
        if failures and not failure[1]:
            # Of several that ended since the last check, the one that was killed (a negative code) is the cause: the
            # others only lost the connection to it.
            failure, deadline = min(failures, key=lambda found: found[1]), time.monotonic() + _GRACE
        if not running or time.monotonic() > deadline:
            return failure
        time.sleep(0.05)


def _death(code: int) -> str:
    """Return how a signal ended a rank, and what to do about it."""
    if code != -signal.SIGKILL:
        return describe_exit(code)
    advice = "resume with the same command and fewer --workers, a smaller --micro-batch or fewer --procs"
    return f"{describe_exit(code)}: {advice}"


def has_patient_parent() -> bool:
    """Return whether `run_processes` started this rank, which leaves the others time to end after one has failed."""
    return _PARENT in os.environ


def stop_with_parent() -> None:
    """Let this rank stop when the parent that started it with `run_processes` is gone, even after a `kill -9`.

    The rank then gets SIGTERM, so it saves after its current step, and its loader processes end with it. Ranks that
    another launcher started are left to that launcher.
    """
    if has_patient_parent():
        threading.Thread(target=_watch, args=(int(os.environ[_PARENT]),), daemon=True).start()


def _watch(parent: int) -> None:
    # Polled, because a signal at the parent's death (PR_SET_PDEATHSIG) exists on Linux only, and only for its thread.
    while os.getppid() == parent:
        time.sleep(_WATCH_EVERY)
    os.kill(os.getpid(), signal.SIGTERM)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
