"""Which file a command may write for the user: none that is part of a run, none that it reads, none of another kind."""

import os
from pathlib import Path

from recipes.errors import UserError

PAGE_ENDINGS = (".html", ".htm")
# What bigbatch keeps in a run directory, and reads again or continues.
_PARTS_OF_A_RUN = (
    "recipe.yaml",
    "run.json",
    "metrics.jsonl",
    "mistakes.json",
    "mistakes",
    "predictions",
    "checkpoints",
    "features",
    "tensorboard",
    "trackers",
    "lock",
    "job",
)


def check_output(path: Path, endings: tuple[str, ...], inputs: tuple[Path, ...] = ()) -> None:
    """Check that a command may write this file, before its work begins.

    Args:
        path: the file to write.
        endings: of the files that it may replace, each with its dot.
        inputs: what the command reads. They need not exist.

    Raises:
        UserError: the file belongs to a run, is one of the inputs, exists and is of another kind, or cannot be written.
    """
    try:
        # Only the folder is resolved, because a link is replaced and not followed.
        place = Path(os.path.realpath(path.parent)) / path.name
        for folder in place.parents:
            if place.relative_to(folder).parts[0] in _PARTS_OF_A_RUN and _is_run(folder):
                raise UserError(f"{path} is part of the run {folder}: choose another file")
        if not path.is_file():
            return
        is_input = any(one.exists() and one.samefile(path) for one in inputs)
    except OSError as error:  # of a name that is too long, or of a folder that may not be read
        raise UserError(f"{path} cannot be written ({error.strerror}): choose another file") from None
    if is_input:
        raise UserError(f"{path} is what the command reads, so it is not replaced: choose another file")
    if path.suffix.lower() not in endings:
        raise UserError(
            f"{path} exists and does not end in {' or '.join(endings)}, so it is not replaced: choose another file"
        )


def _is_run(folder: Path) -> bool:
    """Return whether this is a run directory; a recipe of that name in a folder of recipes does not make it one."""
    kept = ("run.json", "metrics.jsonl", "checkpoints")
    return (folder / "recipe.yaml").is_file() and any((folder / name).exists() for name in kept)
