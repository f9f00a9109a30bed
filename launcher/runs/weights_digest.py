"""Identifies weights by their contents, so that a file that was moved or copied counts as the same."""

import hashlib

from recipes.local_paths import local_path

_NEWEST_STEP = "checkpoints/step-*/checkpoint.json"  # below a run directory


def weights_digest(origin: str | None) -> str | None:
    """Return the SHA-256, in hexadecimal, of the weights that `model.weights` names; None if they cannot be read.

    For a checkpoint, this is the SHA-256 of its ``checkpoint.json``, which holds that of every file. For a run
    directory, it is that of its newest checkpoint.
    """
    if origin is None:
        return None
    path = local_path(origin)
    try:
        if path.is_dir():
            manifests = [path / "checkpoint.json", *sorted(path.glob(_NEWEST_STEP), reverse=True)]
            path = next(manifest for manifest in manifests if manifest.is_file())
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except (OSError, ValueError, StopIteration):  # ValueError: a path with a null byte
        return None
