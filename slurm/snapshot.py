"""The copy of the code that a job runs, so that edits in the working tree do not affect a waiting or restarted job."""

import shutil
import uuid
from collections.abc import Iterable
from pathlib import Path

PACKAGES = ("bigbatch", "recipes", "models", "data", "slurm", "launcher")
# Version of the names in a snapshot that a batch script or a pickle refers to. Raise it when one of them changes.
_PROTOCOL = "2"


def snapshot(source: Path, destination: Path, user_code: Iterable[Path] = ()) -> None:
    """Copy bigbatch's packages and the user's code; the copy appears complete or not at all.

    Args:
        source: the folder from which bigbatch's packages are imported.
        destination: the snapshot, which replaces an earlier one.
        user_code: packages (folders) and modules (files) of the user's own code.
    """
    unfinished = destination.with_name(f".{destination.name}.{uuid.uuid4().hex[:8]}")
    for package in [*(source / package for package in PACKAGES), *(path for path in user_code if path.is_dir())]:
        shutil.copytree(package, unfinished / package.name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    for module in (path for path in user_code if path.is_file()):
        shutil.copy(module, unfinished)
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
