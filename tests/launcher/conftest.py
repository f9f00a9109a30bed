"""What the tests of the launcher share: a small recipe on digits, the command in this process, and a small disk."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from data.writing.sharding import shard
from recipes.load import load
from tests.command_line import run_command
from tests.launcher.saved_runs import ToyShards
from tests.preloaded import training_server


@pytest.fixture(scope="session")
def digits(tmp_path_factory) -> Path:
    """Shards of scikit-learn's handwritten digits, made as a user makes them."""
    folder = tmp_path_factory.mktemp("data") / "digits"
    shard("digits", folder, val_fraction=0.2, progress=False)
    return folder


@pytest.fixture(scope="session")
def toy_shards(tmp_path_factory) -> ToyShards:
    """Makes shards of a few toy images under the class names that it is called with."""
    return ToyShards(tmp_path_factory.mktemp("toy"))


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    """Accelerate keeps one global state per process; a test may not inherit another one's."""
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture
def bigbatch(monkeypatch, capfd):
    """Run the command in this process; return exit code, stdout and stderr."""

    def run(*arguments) -> tuple[int, str, str]:
        return run_command(monkeypatch, *arguments), *capfd.readouterr()

    return run


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    """A file system of its own of 1 MiB, which only root may mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


SMALL = [
    "model.name=test_convnext",
    "model.drop_path=0.3",
    "batch.global=64",
    "batch.slices=4",
    "engine.precision=float32",
    "engine.deterministic=true",
    "run.evaluate_every=1000",
]


@pytest.fixture
def small_recipe(digits):
    """Make the demo recipe with every ingredient on, a tiny model, 64 images a step, and changes."""
    return lambda *changes: load("demo", [*SMALL, f"data.path={digits}", *changes])


def start_training(
    digits: Path, run: Path, *arguments: str, launcher=("-m", "launcher", "train"), python: str = "", **options
) -> subprocess.Popen:
    """Start a training of the small recipe as a user would, in a preloaded process if no `python` is given."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    given = ["--data", str(digits), "--run-dir", str(run), "--workers", "1", *arguments]
    command = [python or training_server().python, *launcher, "demo", *SMALL, *given]
    return subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **options
    )


def train_to_end(digits: Path, run: Path, *arguments: str, **options) -> str:
    """Run a training to its end and return what it printed."""
    process = start_training(digits, run, *arguments, **options)
    output, _ = process.communicate(timeout=300)
    assert process.returncode == 0, output
    return output
