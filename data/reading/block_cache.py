"""Blocks of remote files on a local disk, below a size limit, shared by all processes of a node.

A block is fetched by one process while the others wait for it, appears whole or not at all, and is the same for all. When
the limit is reached, the blocks fetched first go first, until a tenth of the room is free again. A block that is being
read while it goes stays readable. A full or failing disk costs speed, not the run: then blocks are not kept.
"""

import fcntl
import hashlib
import os
import struct
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from data.atomic_io import write_durably
from recipes.errors import UserError

BLOCK = 2**20  # bytes; a block of a file starts at a multiple of it
_LOCKS = 256
_KEPT = 0.9  # of the limit, once it was reached


class BlockCache:
    """A folder of blocks.

    Args:
        folder: made if it is not there.
        limit: bytes of blocks, at least 16 of them.
        version: of the remote files; blocks of another version are other blocks.

    Raises:
        UserError: the folder cannot be written or the limit is too small.
    """

    def __init__(self, folder: Path, limit: int, version: str):
        self.folder, self.limit, self.version = folder, limit, version
        if limit < 16 * BLOCK:
            raise UserError(
                f"a cache of {limit / 2**20:.0f} MiB is too small: give data.cache_gib at least {16 * BLOCK / 2**30:g}"
            )
        try:
            for part in ("blocks", "locks"):
                (folder / part).mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the cache folder {folder} cannot be written ({error.strerror}): choose another data.cache"
            ) from None

    def read(self, path: str, block: int, start: int, stop: int, fetch: Callable[[], bytes]) -> bytes:
        """Return the bytes from `start` to `stop` of a block, fetching it if it is not there."""
        name = hashlib.sha256(f"{self.version}\n{path}\n{block}".encode()).hexdigest()[:40]
        kept = self.folder / "blocks" / name
        found = _part(kept, start, stop)
        if found is None:
            with self._locked(str(int(name[:8], 16) % _LOCKS)):
                found = _part(kept, start, stop)  # another process may have been faster
                if found is None:
                    contents = fetch()
                    found = contents[start:stop]
                    self._keep(kept, contents)
        return found

    def whole_file(self, path: str, fetch: Callable[[], bytes]) -> Path:
        """Return where a file is kept whole, fetching it if it is not there; it stays outside the limit."""
        kept = self.folder / hashlib.sha256(f"{self.version}\n{path}".encode()).hexdigest()[:40]
        with self._locked("whole"):
            if not kept.exists():
                try:
                    write_durably(kept, fetch())
                except OSError as error:
                    raise UserError(f"the cache folder {self.folder} cannot be written ({error.strerror})") from None
        return kept

    def _keep(self, kept: Path, contents: bytes) -> None:
        partial = kept.with_name(f"{kept.name}.partial")  # held by one process and thread: the lock
        try:
            with partial.open("wb") as stream:
                stream.write(contents)
                stream.flush()
                os.fsync(stream.fileno())  # a power cut must not leave a hole behind the name
            partial.replace(kept)
            self._count(len(contents))
        except OSError:
            partial.unlink(missing_ok=True)

    def _count(self, added: int) -> None:
        """Add to the bytes in use, which all processes count in one file, and make room above the limit."""
        with self._locked("used") as lock:
            stored = os.pread(lock, 8, 0)
            used = added + (struct.unpack("<Q", stored)[0] if len(stored) == 8 else self._in_use() - added)
            if used > self.limit:
                used = self._make_room()
            os.pwrite(lock, struct.pack("<Q", used), 0)

    def _blocks(self) -> list[tuple[int, str, int]]:
        """When each block was fetched, in nanoseconds, its path, and its bytes; first come first."""
        found = []
        for entry in os.scandir(self.folder / "blocks"):
            status = entry.stat()
            found.append((status.st_mtime_ns, entry.path, status.st_size))
        return sorted(found)

    def _in_use(self) -> int:
        return sum(size for _, _, size in self._blocks())

    def _make_room(self) -> int:
        blocks = self._blocks()
        used = sum(size for _, _, size in blocks)
        for _, path, size in blocks:
            if used <= _KEPT * self.limit:
                break
            if not path.endswith(".partial"):
                os.unlink(path)
                used -= size
        return used

    @contextmanager
    def _locked(self, name: str) -> Iterator[int]:
        lock = os.open(self.folder / "locks" / name, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield lock
        finally:
            os.close(lock)


def _part(kept: Path, start: int, stop: int) -> bytes | None:
    try:
        with kept.open("rb", buffering=0) as stream:
            return os.pread(stream.fileno(), stop - start, start)
    except FileNotFoundError:
        return None
