"""The distribution is complete: sdist and wheel build, install into clean environments, and run from another folder."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
PACKAGES = ("bigbatch", "recipes", "models", "data", "slurm", "launcher")


def run(*command: str | Path, folder: Path) -> str:
    """Run a program that finds none of this checkout's code, and return what it printed."""
    hidden = ("PYTHONPATH", "VIRTUAL_ENV")
    environment = {name: value for name, value in os.environ.items() if name not in hidden} | {"OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory) -> Path:
    """The folder of the sdist and of the wheel, which is built from the sdist. Nothing is downloaded."""
    folder = tmp_path_factory.mktemp("package")
    (folder / "source").mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "build", "--no-isolation", "--outdir", folder / "dist", folder / "source", folder=folder)
    return folder / "dist"


def installed(distribution: Path, folder: Path) -> Path:
    """Install into a new environment in `folder`; return where its programs are.

    Other packages come from the environment of the tests through a .pth file. It adds a folder to the path but does not
    process that folder's own .pth files, so an editable installation of bigbatch stays out.
    """
    run(sys.executable, "-m", "venv", "--without-pip", folder, folder=folder.parent)
    programs = folder / "bin"
    packages = Path(
        run(programs / "python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))", folder=folder)
    )
    (Path(str(packages).strip()) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--ignore-installed", "--quiet"]
    run(sys.executable, "-m", "pip", "--python", programs / "python", "install", *options, distribution, folder=folder)
    return programs


def test_the_wheel_trains_from_another_folder(distributions, tmp_path):
    (wheel,) = distributions.glob("*.whl")
    programs, work = installed(wheel, tmp_path / "venv"), tmp_path / "work"
    work.mkdir()
    bigbatch = programs / "bigbatch"
    place = run(
        programs / "python", "-c", "import launcher, data; print(launcher.__file__, data.__file__)", folder=work
    )
    assert all(Path(file).is_relative_to(tmp_path / "venv") for file in place.split())
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert version in run(bigbatch, "--version", folder=work)
    assert "convnext_tiny_in1k" in run(bigbatch, "recipes", folder=work)
    run(bigbatch, "shard", "digits", "shards/digits", "--val-fraction", "0.2", folder=work)
    two_steps = ["model.name=test_convnext", "batch.global=512", "schedule.epochs=1", "schedule.warmup_epochs=0"]
    output = run(bigbatch, "train", "demo", "--data", "shards/digits", "--workers", "0", *two_steps, folder=work)
    assert "2 steps" in output and "finished" in output
    assert "report.html" in run(bigbatch, "report", "runs/demo", folder=work)


def test_the_sdist_installs(distributions, tmp_path):
    (sdist,) = distributions.glob("*.tar.gz")
    with tarfile.open(sdist) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert {"LICENSE", "README.md", "pyproject.toml", "launcher/py.typed", "recipes/catalogue/demo.yaml"} <= names
    assert "demo" in run(installed(sdist, tmp_path / "venv") / "bigbatch", "recipes", folder=tmp_path)
