"""The folder that keeps unfinished work, so that a killed command resumes and two commands never write one data set."""

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from data.atomic_io import write_durably
from data.reading.file_lock import file_lock
from data.reading.manifest import MANIFEST
from recipes.errors import UserError
from recipes.parsing import parse_json

WORK = ".work"
_PATIENCE = 5.0  # seconds; the workers of a killed command hold the lock until they notice, after 0.2 s or so
_NO_LOCKS = (errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS)


@contextmanager
def work_folder(dest: Path, identity: dict[str, Any]) -> Iterator[Path]:
    """Yield ``dest/.work``, locked for this process; remove it when the work finished without an error.

    Raises:
        UserError: `dest` cannot be written, holds other files, is held by another process, or holds the unfinished
            work of another `identity`.
    """
    work = dest / WORK
    # In this order: another command that begins or finishes meanwhile is not mistaken for files of somebody else.
    if dest.is_dir() and any(dest.iterdir()) and not work.is_dir() and not (dest / MANIFEST).exists():
        raise UserError(f"{dest} is not empty and holds no shards: give a new folder")
    with _locked(work):
        _claim(work, identity)
        _remove_unfinished(work)
        try:
            yield work
        except BaseException:
            _remove_unfinished(work)  # on a full disk, unfinished files only take space
            raise
        # If a kill interrupts this, the next command for `dest` removes the rest.
        shutil.rmtree(work, ignore_errors=True)


@contextmanager
def _locked(work: Path) -> Iterator[None]:
    with ExitStack() as stack:
        try:
            while True:
                try:
                    work.mkdir(parents=True, exist_ok=True)
                except FileExistsError:
                    if work.is_file() or work.is_symlink() or not work.parent.is_dir():
                        raise  # a file of that name, or a dangling link
                    continue  # another command has removed the folder, between Python's two looks at it
                with ExitStack() as attempt, suppress(FileNotFoundError):
                    lock = attempt.enter_context(file_lock(work / "lock", _PATIENCE))
                    # A command that finishes removes the folder with the lock file that this one waited for.
                    if os.path.samestat(os.fstat(lock), (work / "lock").stat()):
                        stack.push(attempt.pop_all())
                        break
        except TimeoutError:
            raise UserError(f"another `bigbatch shard` is writing {work.parent}: wait for it or stop it") from None
        except OSError as error:
            # Some network file systems have no locks. There, two commands only repeat each other's work: the names of
            # unfinished files contain the process's number.
            if error.errno not in _NO_LOCKS:
                raise UserError(f"{work.parent} cannot be written ({error.strerror}): give another folder") from None
        yield


def _remove_unfinished(work: Path) -> None:
    for left_over in work.glob("*.partial"):
        left_over.unlink(missing_ok=True)


def _claim(work: Path, identity: dict[str, Any]) -> None:
    claim = work / "plan.json"
    try:
        claimed = parse_json(claim.read_bytes())
    except FileNotFoundError:
        write_durably(claim, json.dumps(identity).encode())
        return
    except ValueError:
        claimed = None  # damaged, so nobody knows of what the unfinished shards are
    if claimed != identity:
        raise UserError(
            f"{work.parent} holds unfinished shards of another source or other options: "
            f"finish those, or remove the folder"
        )
