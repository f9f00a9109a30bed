"""Real training processes that start fast: forked from a server that has imported everything.

So a test can have hundreds of them. What runs in them is `launcher.training.train.train`, with the environment that a
launcher sets. `bigbatch train`, torchrun and accelerate themselves are tested in `test_trajectory`.
"""

import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path

from recipes.schema import Recipe

_CONTEXT = multiprocessing.get_context("forkserver")
_LAZY = [
    "torch.utils.tensorboard",
    "deepspeed.runtime.zero.muon.muon_optimizer",
]  # which a start imports, and with the second torch's compiler
_CONTEXT.set_forkserver_preload(["launcher.training.train", "launcher.engines.zero", "launcher.runs.report", *_LAZY])


class Group:
    """The processes of one start of a run."""

    def __init__(self, world_size: int, recipe: Recipe, run: Path, target=None, **options):
        """Start them. `target` is called in each with recipe, run and options; `train` if none is given."""
        self.log = run.with_name(f"{run.name}.log")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.processes = []
        for rank in range(world_size):
            environment = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
            environment |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            if world_size == 1:
                environment = {}
            arguments = (environment, self.log, target or _train, recipe, run, options)
            self.processes.append(_CONTEXT.Process(target=_process, args=arguments))
        for process in self.processes:
            process.start()

    def wait(self, seconds: float = 240) -> int:
        """Return the first exit code that is not 0 (negative: a signal); when one process fails, kill the others."""
        deadline = time.monotonic() + seconds
        while any(process.is_alive() for process in self.processes):
            failed = [process.exitcode for process in self.processes if process.exitcode]
            if failed or time.monotonic() > deadline:
                self.kill()
                assert failed, f"not finished after {seconds} s:\n{self.log.read_text()}"
            time.sleep(0.01)
        return next((process.exitcode for process in self.processes if process.exitcode), 0)

    def finish(self, seconds: float = 240) -> None:
        """Wait; any failure fails the test with what the processes printed."""
        assert self.wait(seconds) == 0, self.log.read_text()

    def kill(self, ranks: range | None = None) -> None:
        """SIGKILL all of them, or some."""
        chosen = self.processes if ranks is None else [self.processes[rank] for rank in ranks]
        for process in chosen:
            process.kill()
        for process in chosen:
            process.join()


def train_group(world_size: int, recipe: Recipe, run: Path, **options) -> None:
    """Train to the end. Images are loaded in the same process unless `workers` is given."""
    Group(world_size, recipe, run, **options).finish()


def _process(environment: dict, log: Path, target, recipe: Recipe, run: Path, options: dict) -> None:
    import torch

    os.environ.update({name: str(value) for name, value in environment.items()})
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1), os.dup2(descriptor, 2)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False)
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False)
    torch.set_num_threads(1)
    target(recipe, run, **options)


def train_until(recipe: Recipe, run: Path, step: int, **options) -> None:
    """Train as if asked to stop in time to have finished `step` steps; saves there."""
    from launcher.training.loop import Training

    do_step = Training._step

    def stopping(self, number, batches, progress, stop_wanted):
        return do_step(self, number, batches, progress, stop_wanted or number + 1 >= step)

    Training._step = stopping
    _train(recipe, run, **options)


def _train(recipe: Recipe, run: Path, **options) -> None:
    from launcher.training.train import StartOptions, train

    train(recipe, run, StartOptions(**{"workers": 0, **options}))
