"""Real training processes that start fast: forked from a server that has imported everything.

So a test can have hundreds of them. What runs in them is `launcher.training.train.train`, with the environment that a
launcher sets. `bigbatch train`, torchrun and accelerate themselves are tested in `test_trajectory`.
"""

import os
import pickle
import socket
import sys
import tempfile
import time
from pathlib import Path

from recipes.schema import Recipe
from tests.preloaded import training_server


class Group:
    """The processes of one start of a run."""

    def __init__(self, world_size: int, recipe: Recipe, run: Path, target=None, **options):
        """Start them. `target` is called in each with recipe, run and options; `train` if none is given."""
        self.log = run.with_name(f"{run.name}.log")
        self.log.parent.mkdir(parents=True, exist_ok=True)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        function = target or _train
        # A benchmark that runs as a program is not `__main__` in the processes.
        module = sys.modules["__main__"].__spec__.name if function.__module__ == "__main__" else function.__module__
        self.processes = []
        for rank in range(world_size):
            ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world_size, "LOCAL_WORLD_SIZE": world_size}
            ranks |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            variables = {"OMP_NUM_THREADS": 1, "PYTHONUNBUFFERED": 1, **(ranks if world_size > 1 else {})}
            environment = os.environ | {name: str(value) for name, value in variables.items()}
            with tempfile.TemporaryFile() as call, self.log.open("ab") as log:
                pickle.dump((module, function.__name__, (recipe, run), options), call)
                call.seek(0)
                streams = (call.fileno(), log.fileno(), log.fileno())
                command = ["-P", "-m", "tests.preloaded.call"]
                self.processes.append(training_server().start(*command, environment=environment, streams=streams))

    def is_running(self) -> bool:
        """Return whether any process runs."""
        return any(process.poll() is None for process in self.processes)

    def wait(self, seconds: float = 240) -> int:
        """Return the first exit code that is not 0 (negative: a signal); when one process fails, kill the others."""
        deadline = time.monotonic() + seconds
        while self.is_running():
            failed = [process.returncode for process in self.processes if process.returncode]
            if failed or time.monotonic() > deadline:
                self.kill()
                assert failed, f"not finished after {seconds} s:\n{self.log.read_text()}"
            time.sleep(0.01)
        return next((process.returncode for process in self.processes if process.returncode), 0)

    def finish(self, seconds: float = 240) -> None:
        """Wait; any failure fails the test with what the processes printed."""
        assert self.wait(seconds) == 0, self.log.read_text()

    def kill(self, ranks: range | None = None) -> None:
        """SIGKILL all of them, or some."""
        chosen = self.processes if ranks is None else [self.processes[rank] for rank in ranks]
        for process in chosen:
            process.kill()
        for process in chosen:
            process.wait()


def train_group(world_size: int, recipe: Recipe, run: Path, **options) -> None:
    """Train to the end. Images are loaded in the same process unless `workers` is given."""
    Group(world_size, recipe, run, **options).finish()


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
