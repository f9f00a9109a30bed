"""Writing files that are complete or absent, even after a kill or a power cut."""

import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file written there replaces `path` at the end of the block.

    The file is flushed to the disk before it gets its name. Its mode follows the user's umask, whatever library wrote
    it. The name survives a power cut only after its folder is flushed too (`flush_folder`). After an error no file is
    left.
    """
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:12]}.partial")
    try:
        # Some libraries create files with mode 0600. A file that exists already shows the mode that the umask gives.
        temporary.touch()
        mode = temporary.stat().st_mode & 0o777
        yield temporary
        with temporary.open("rb") as stream:
            os.fchmod(stream.fileno(), mode)
            os.fsync(stream.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_atomically(path: Path, contents: bytes) -> None:
    """Write a file that no reader sees half-written. Its name may not survive a power cut; see `replacing`."""
    with replacing(path) as temporary:
        temporary.write_bytes(contents)


def write_durably(path: Path, contents: bytes) -> None:
    """Write a file that no reader sees half-written and whose name survives a power cut."""
    write_atomically(path, contents)
    flush_folder(path.parent)


def flush(stream: BinaryIO) -> None:
    """Flush an open file's contents to the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def rename_durably(temporary: Path, path: Path) -> None:
    """Rename a file that is already flushed, and flush its folder."""
    temporary.replace(path)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Flush a folder's entries, which are the names of its files, to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
