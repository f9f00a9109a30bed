"""Paths on this machine as users write them: ``~`` is their home folder, and a URL is refused.

Used as a path, a URL such as ``s3://bucket/run`` would become a folder called ``s3:``.
"""

import re
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

from recipes.errors import UserError

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # a single letter before the colon is a drive of Windows


def has_scheme(path: str | Path) -> bool:
    """Return whether a path begins as a URL does; one slash is enough, because `Path` keeps no more of them."""
    return _SCHEME.match(str(path)) is not None


def as_url(path: str | Path) -> str:
    """Return a path that begins as a URL does with both of its slashes."""
    text = str(path)
    return text if "://" in text else text.replace(":/", "://", 1)


def local_path(path: str | Path) -> Path:
    """Return a path with the home folder in the place of ``~``.

    Raises:
        UserError: it is a URL.
    """
    if has_scheme(path):
        raise UserError(f"{as_url(path)} is a URL, and only a path on this machine can be used here: give a local path")
    try:
        return Path(path).expanduser()
    except RuntimeError:  # there is no such user, so that it is a name like any other, as in a shell
        return Path(path)


def _checked(path: str) -> str:
    local_path(path)
    return path


# The type of a recipe key: kept as the user wrote it, so that a recipe stays valid for every user. Where it is used,
# `local_path` makes a path of it.
LocalPathText = Annotated[str, AfterValidator(_checked)]
