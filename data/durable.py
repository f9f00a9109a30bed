"""Files that are there whole or not at all, also after a kill or a power cut."""

import os
from pathlib import Path


def write_whole(path: Path, contents: bytes) -> None:
    """Write a file under a temporary name beside `path`, flush its contents to the disk, and give it its name.

    The file is never seen half-written. Its name survives a power cut only once its folder is flushed (`flush_folder`), which
    another process may do.
    """
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with temporary.open("wb") as stream:
        stream.write(contents)
        flush(stream)
    temporary.replace(path)


def write_durably(path: Path, contents: bytes) -> None:
    """Write a file as `write_whole` does, and flush the folder's entry too."""
    write_whole(path, contents)
    flush_folder(path.parent)


def flush(stream) -> None:
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
