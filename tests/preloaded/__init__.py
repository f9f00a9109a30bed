"""Python programs that start in milliseconds: forked from a server that has imported torch, timm and DeepSpeed already.

Importing them takes up to five seconds of CPU, most of what a test of a small training costs. A program started here
has its own working directory, environment, arguments, file descriptors, signals and exit code, as with a new Python.
It differs in what Python fixes at its start: a variable that a library reads when it is imported has the server's
value, and the hash of strings is one for all programs. Tests of the start itself use `sys.executable`.
"""

import functools
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.preloaded.client import Program

ROOT = Path(__file__).parents[2]
MODULES = (
    "launcher.cli.main",
    "launcher.training.train",
    "launcher.engines.zero",
    "launcher.experiments.replay",
    "launcher.jobs.doctor",
    "launcher.runs.report",
    "data.writing.sharding",
    # What they import when they need it, and with the last one torch's compiler.
    "sklearn.datasets",
    "sklearn.metrics",
    "torch.utils.tensorboard",
    "deepspeed.runtime.zero.muon.muon_optimizer",
)


class Server:
    """A process that has imported modules and forks for each program.

    It ends with the process that made it, however that ends, and removes its folder.

    Args:
        modules: to import.
        variables: environment variables for the import, e.g. those that a `sitecustomize` reads.
    """

    def __init__(self, modules: tuple[str, ...], **variables: str):
        folder = Path(tempfile.mkdtemp(prefix="preloaded-"))  # short: the path of a socket has 107 bytes at most
        self._address = str(folder / "socket")
        # Stands for `sys.executable`, in shells and where a program starts others. Arguments that the server does not
        # understand are passed to the real one.
        self.python = folder / "python"
        client = [sys.executable, "-S", "-E", "-s", str(Path(__file__).with_name("client.py")), self._address]
        self.python.write_text(f'#!/bin/sh\nexec {shlex.join([*client, sys.executable])} "$@"\n')
        self.python.chmod(0o755)
        # Where there is a GPU, the usual check for it would begin what a forked process cannot continue.
        fixed = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
        environment = {**os.environ, **fixed, **variables}
        command = [sys.executable, "-P", "-m", "tests.preloaded.server", self._address, str(self.python), *modules]
        # Without a session of its own, Ctrl-C would end it before the tests have cleaned up.
        self._process = subprocess.Popen(
            command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True
        )
        assert self._process.stdout.readline() == b"ready\n", "the server of preloaded programs did not start"

    def start(self, *arguments: str, **given) -> Program:
        """Start ``python *arguments``; `given` are the working directory and the like, see `Program`."""
        return Program(self._address, arguments, **given)


@functools.cache
def training_server() -> Server:
    """Return the server of this process of pytest for trainings and all other commands."""
    return Server(MODULES)
