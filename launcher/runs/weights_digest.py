"""Recognising weights by their contents, so that a file that was moved or copied counts as the same."""

import hashlib
from pathlib import Path

_NEWEST_STEP = "checkpoints/step-*/checkpoint.json"  # below a run directory


def weights_digest(origin: str | None) -> str | None:
    """Return the SHA-256 of what `model.weights` names, in hexadecimal; None where it names nothing that can be read.

    For a checkpoint it is that of its ``checkpoint.json``, which holds the SHA-256 of every file; for a run directory,
    that of its newest checkpoint.
    """
    if origin is None:
        return None
    path = Path(origin)
    try:
        if path.is_dir():
            manifests = [path / "checkpoint.json", *sorted(path.glob(_NEWEST_STEP), reverse=True)]
            path = next(manifest for manifest in manifests if manifest.is_file())
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, StopIteration):  # ValueError: a path with a null byte
        return None
