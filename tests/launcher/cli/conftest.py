"""What the tests of commands share: a finished run, inputs that work, and what a user would complain about."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image
from torch import Tensor

from launcher.evaluation import saved_weights
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError
from tests.command_line import run_program
from tests.launcher.cli.bad_inputs import run
from tests.launcher.conftest import SMALL

GOOD = Path(__file__).parents[2] / "compatibility" / "made_by_0_1_0"


@pytest.fixture(scope="session")
def run_directory(digits, tmp_path_factory) -> Path:
    """A finished run of two epochs."""
    run = tmp_path_factory.mktemp("runs") / "demo"
    changes = [*SMALL, "schedule.epochs=2", "schedule.warmup_epochs=0"]
    run_program("train", "demo", *changes, "--data", digits, "--run-dir", run, "--workers", "0").check_returncode()
    return run


def run_weights(run: Path) -> dict[str, Tensor]:
    """Return the raw weights of the newest checkpoint of a run."""
    return saved_weights.run_weights(RunDirectory(run), ema=False).tensors


@pytest.fixture
def good(tmp_path) -> Path:
    """A run, shards, weights, a recipe and a job that work, and may be written to."""
    folder = Path(shutil.copytree(GOOD, tmp_path / "good"))
    for number, name in enumerate(("image.png", "images/a/0.png", "images/b/1.png")):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / name)
    return folder


@pytest.fixture
def complaints(tmp_path, capfd, monkeypatch) -> Callable[..., list[str]]:
    """Return a function that runs a command and returns what a user would complain about."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "good" / "config"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "good" / "cache"))
    monkeypatch.chdir(tmp_path / "good")  # where a project's own clusters.toml is looked for

    def refuse(*_: object) -> None:
        raise UserError("no job is started in this test")

    # A run whose ledger is damaged is no longer known to be finished, so that `resume` would start a job.
    monkeypatch.setattr("launcher.jobs.cancel_resume.submit_jobs", refuse)

    def check(command: list[str], fine: bool, codes: tuple[int, ...], named: str = "") -> list[str]:
        code = run(command)
        output, errors = capfd.readouterr()
        sentences = [line for line in errors.splitlines() if line.startswith("error: ")]
        found = []
        if not isinstance(code, int) or (code not in codes and not (fine and code in (0, 2))):
            found.append(f"ended with {code!r}")
        if code == 2 and len(sentences) != 1:
            found.append(f"printed {len(sentences)} sentences: {errors!r}")
        if code == 2 and sentences and named not in sentences[0] and not fine:
            found.append(f"does not name {named}: {sentences[0]}")
        if "Traceback" in output + errors:
            found.append(f"printed a traceback: {errors}")
        if any("\x1b" in sentence for sentence in sentences):
            found.append("printed a control character of a file's name")
        return found

    return check
