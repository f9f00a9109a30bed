"""Iterates over the members of a tar in constant memory."""

import tarfile
from collections.abc import Iterator


def tar_members(tar: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Yield the header of each member, of files and of everything else.

    Raises:
        tarfile.TarError: the tar is damaged or ends too early.
    """
    while (member := tar.next()) is not None:
        # tarfile keeps every header it has read, which for millions of images fills the memory.
        tar.members = []  # type: ignore[attr-defined]  # not in typeshed, though documented by its use in getmembers
        yield member
