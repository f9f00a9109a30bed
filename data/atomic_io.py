"""Files that appear whole or not at all, also after a kill or a power cut."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; the file that the caller writes there replaces `path` at the end.

    The file is flushed to the disk before it gets its name, and has the mode that the user's umask gives a new file, whatever
    library wrote it. Its name survives a power cut only once its folder is flushed (`flush_folder`). After an error nothing is
    left behind.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
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
    """Write a file that is never seen half-written; as `replacing` says, its name may not survive a power cut."""
    with replacing(path) as temporary:
        temporary.write_bytes(contents)


def write_durably(path: Path, contents: bytes) -> None:
    """Write a file that is never seen half-written, and whose name survives a power cut too."""
    write_atomically(path, contents)
    flush_folder(path.parent)


def flush(stream: BinaryIO) -> None:
    """Bring an open file's contents to the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def rename_durably(temporary: Path, path: Path) -> None:
    """Give a flushed file its final name and bring the folder's entry to the disk."""
    temporary.replace(path)
    flush_folder(path.parent)


def flush_folder(folder: Path) -> None:
    """Bring a folder's entries, the names of its files, to the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
