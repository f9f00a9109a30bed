"""Files that are there whole or not at all, also after a kill or a power cut."""

import os
from pathlib import Path


def write_durably(path: Path, contents: bytes) -> None:
    """Write a file under a temporary name beside `path`, flush it to the disk, and give it its name."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.partial")
    with temporary.open("wb") as stream:
        stream.write(contents)
        flush(stream)
    rename_durably(temporary, path)


def flush(stream) -> None:
    """Bring an open file's contents to the disk."""
    stream.flush()
    os.fsync(stream.fileno())


def rename_durably(temporary: Path, path: Path) -> None:
    """Give a flushed file its final name and bring the folder's entry to the disk."""
    temporary.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
