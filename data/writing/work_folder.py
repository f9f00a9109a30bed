"""The folder that remembers unfinished work, so that a killed command goes on and two commands never mix."""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from data.atomic_io import write_durably
from recipes.errors import UserError

WORK = ".work"
_PATIENCE = 5.0  # seconds; the workers of a killed run take a moment to notice


@contextmanager
def work_folder(dest: Path, identity: dict) -> Iterator[Path]:
    """Yield ``dest/.work``, held by this process alone; remove it when the work was finished without an error.

    Raises:
        UserError: `dest` cannot be written, holds other files, is held by another process, or holds the unfinished
            work of another `identity`.
    """
    work = dest / WORK
    if dest.is_dir() and not work.is_dir() and any(dest.iterdir()):
        raise UserError(f"{dest} is not empty and holds no shards: give a new folder")
    try:
        work.mkdir(parents=True, exist_ok=True)
        lock = os.open(work / "lock", os.O_CREAT | os.O_RDWR)
    except OSError as error:
        raise UserError(f"{dest} cannot be written ({error.strerror}): give another folder") from None
    try:
        _acquire(lock, dest)
        _claim(work, identity)
        for left_over in work.glob("*.partial"):
            left_over.unlink()
        yield work
        shutil.rmtree(work)
    finally:
        os.close(lock)


def _acquire(lock: int, dest: Path) -> None:
    deadline = time.monotonic() + _PATIENCE
    while True:
        try:
            return fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() > deadline:
                raise UserError(f"another `bigbatch shard` is writing {dest}: wait for it or stop it") from None
            time.sleep(0.1)
        except OSError:
            return None  # some network file systems have no locks; the names of unfinished files differ per process


def _claim(work: Path, identity: dict) -> None:
    claim = work / "plan.json"
    if not claim.exists():
        write_durably(claim, json.dumps(identity).encode())
    elif json.loads(claim.read_text()) != identity:
        raise UserError(
            f"{work.parent} holds unfinished shards of another source or other options: "
            f"finish those, or remove the folder"
        )
