"""The copy of the code that a job runs, so that edits in the working tree do not affect a waiting or restarted job."""

import shutil
import uuid
from pathlib import Path

PACKAGES = ("recipes", "models", "data", "slurm", "launcher")  # the code of bigbatch
# Version of the names in a snapshot that a batch script or a pickle refers to. Raise it when one of them changes.
_PROTOCOL = "2"


def snapshot(source: Path, destination: Path) -> None:
    """Copy bigbatch's packages from the folder they are imported from; the copy appears complete or not at all."""
    unfinished = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}")
    for package in PACKAGES:
        shutil.copytree(source / package, unfinished / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    (unfinished / "protocol").write_text(_PROTOCOL)
    shutil.rmtree(destination, ignore_errors=True)
    unfinished.rename(destination)


def is_complete(code: Path) -> bool:
    """Return whether a snapshot has all of its packages."""
    return all((code / package / "__init__.py").is_file() for package in PACKAGES)


def can_be_started(code: Path) -> bool:
    """Return whether the batch scripts of this version can start a snapshot. They cannot start those of 0.1.0."""
    protocol = code / "protocol"
    return protocol.is_file() and protocol.read_text() == _PROTOCOL
