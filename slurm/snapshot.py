"""A copy of the code that a job runs, so that editing the working tree changes nothing in a job that waits or comes back."""

import shutil
import uuid
from pathlib import Path

PACKAGES = ("recipes", "models", "data", "slurm", "launcher")  # the code of bigbatch


def snapshot(source: Path, destination: Path) -> None:
    """Copy bigbatch's packages from the folder they are imported from; the copy is there whole or not at all."""
    unfinished = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}")
    for package in PACKAGES:
        shutil.copytree(source / package, unfinished / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    shutil.rmtree(destination, ignore_errors=True)
    unfinished.rename(destination)
