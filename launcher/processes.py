"""Start several processes of one program on this machine and end together.

torchrun would do, but on Ctrl-C it kills its children after 30 seconds, which is less than one step of a large batch can take; here
they are given the time to finish the step and save.
"""

import os
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

_ROOT = str(Path(__file__).parents[1])  # the folder of our packages, also where they are not installed
_GRACE = 10.0  # seconds that the others have to end after one process failed


def run_processes(module: str, arguments: list[str], count: int) -> int:
    """Run ``python -m module arguments`` in `count` processes that find each other; return the first failure's exit code, or 0.

    Ctrl-C and SIGTERM are theirs to handle; when one fails, the others are ended.
    """
    threads = max(1, (os.cpu_count() or 1) // count)
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(_free_port()),
        "WORLD_SIZE": str(count),
        "LOCAL_WORLD_SIZE": str(count),
    }
    shared["PYTHONPATH"] = os.pathsep.join(filter(None, [_ROOT, os.environ.get("PYTHONPATH")]))
    processes = []
    for rank in range(count):
        environment = {
            "OMP_NUM_THREADS": str(threads),
            **os.environ,
            **shared,
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
        }
        # -P: otherwise the working directory comes first, and a `launcher/` that lies there would be taken for ours.
        processes.append(subprocess.Popen([sys.executable, "-P", "-m", module, *arguments], env=environment))

    def pass_on(number, _frame):
        for process in processes:
            if process.poll() is None:
                process.send_signal(number)

    before = {
        signal.SIGTERM: signal.signal(signal.SIGTERM, pass_on),
        signal.SIGINT: signal.signal(signal.SIGINT, signal.SIG_IGN),
    }
    try:
        return _wait(processes)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for process in processes:
            if process.poll() is None:
                process.kill()
                process.wait()


def _wait(processes: list[subprocess.Popen]) -> int:
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
        return probe.getsockname()[1]
