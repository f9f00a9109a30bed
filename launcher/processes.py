"""Start several processes of one program on this machine, and end with them.

torchrun kills its children 30 seconds after Ctrl-C, which is less than one step of a large batch can take. Here the
children have the time that they need to finish the step and save.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType

_ROOT = str(Path(__file__).parents[1])  # the folder of our packages, which need not be installed
_GRACE = 10.0  # seconds that the other processes have to end by themselves after one has failed


def option_arguments(options: Mapping[str, object]) -> list[str]:
    """Return command-line arguments for the options that are not None, e.g. ``["--workers", "4"]``."""
    given = [(option, value) for option, value in options.items() if value is not None]
    return [str(part) for pair in given for part in pair]


def run_processes(module: str, arguments: list[str], count: int) -> int:
    """Run ``python -m module arguments`` in `count` ranks; return the exit code of the first that fails, or 0.

    Ctrl-C and SIGTERM reach the ranks, which handle them. When one rank fails, the others are ended.
    """
    threads = max(1, (os.cpu_count() or 1) // count)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
        "PYTHONPATH": os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")])),
    }
    processes = []
    for rank in range(count):
        # A number of threads that the user has set is kept.
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ, **shared}
        environment |= {"RANK": str(rank), "LOCAL_RANK": str(rank)}
        # With `-m`, Python searches the working directory first, and a `launcher/` there would shadow ours; -P
        # forbids it.
        processes.append(subprocess.Popen([sys.executable, "-P", "-m", module, *arguments], env=environment))

    def forward(number: int, _frame: FrameType | None) -> None:
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    previous = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, forward),
        # A terminal sends Ctrl-C to the ranks as well, so that forwarding it would deliver it twice.
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
    }
    try:
        return _wait(processes)
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait(processes: list[subprocess.Popen]) -> int:
    """Wait until all processes have ended, or `_GRACE` seconds after the first failure; return its exit code, or 0."""
    failure, deadline = 0, None
    while any(process.poll() is None for process in processes):
        if not failure:
            failure = next((process.returncode for process in processes if process.poll()), 0)
        if failure and deadline is None:
            deadline = time.monotonic() + _GRACE
        if deadline and time.monotonic() > deadline:
            break
        time.sleep(0.05)
    return failure or next((process.returncode for process in processes if process.poll()), 0)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
