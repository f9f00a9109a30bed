"""Blocks of remote files on a local disk, below a size limit, shared by all processes of a node.

One process fetches a block while the others wait for it; a block appears whole or not at all. At the size limit, the
blocks that were fetched first are removed until a tenth of the space is free again. A process that is reading a block
can finish although the block is removed. A block whose contents changed on the disk is fetched again. When the disk
is full or fails, blocks are not kept: reading gets slower, and the run continues.
"""

import hashlib
import os
import struct
from collections.abc import Callable
from pathlib import Path

from data.atomic_io import write_durably
from data.reading.checked_block import packed, read_part
from data.reading.file_lock import file_lock
from recipes.errors import UserError

BLOCK = 2**20  # bytes; block n of a file starts at n * BLOCK
_LOCKS = 256  # enough that two blocks fetched at once seldom share a lock, few enough not to litter the folder
_KEPT = 0.9  # share of the limit that remains after blocks were removed


class BlockCache:
    """A folder of blocks.

    Args:
        folder: created if it is missing.
        limit: bytes of blocks; at least 16 blocks.
        version: identity of the remote files; blocks of another version are not shared.

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
            with file_lock(self._lock_path("used")):  # another user's cache has the folders, but refuses this
                pass
        except OSError as error:
            raise UserError(
                f"the cache folder {folder} cannot be written ({error.strerror}), perhaps because it is "
                f"another user's: choose another data.cache"
            ) from None

    def read(self, path: str, block: int, start: int, stop: int, fetch: Callable[[], bytes]) -> bytes:
        """Return the bytes from `start` to `stop` of a block, fetching the block if it is not in the cache."""
        # "checked" tells these blocks from those of early versions, which had no checksums and are removed in time.
        name = hashlib.sha256(f"{self.version}\n{path}\n{block}\nchecked".encode()).hexdigest()[:40]
        kept = self.folder / "blocks" / name
        found = _part(kept, start, stop)
        if found is None:
            with file_lock(self._lock_path(str(int(name[:8], 16) % _LOCKS))):
                found = _part(kept, start, stop)  # another process may have fetched it while this one waited
                if found is None:
                    contents = fetch()
                    found = contents[start:stop]
                    self._keep(kept, packed(contents))
        return found

    def whole_file(self, path: str, checksum: str, fetch: Callable[[], bytes]) -> Path:
        """Return the local path of a whole file, fetched if it is missing or was changed.

        Whole files do not count towards the limit.

        Args:
            path: of the remote file.
            checksum: its SHA-256, in hexadecimal.
            fetch: returns its contents.
        """
        kept = self.folder / hashlib.sha256(f"{self.version}\n{path}".encode()).hexdigest()[:40]
        with file_lock(self._lock_path("whole")):
            if not _is_whole(kept, checksum):
                try:
                    write_durably(kept, fetch())
                except OSError as error:
                    raise UserError(f"the cache folder {self.folder} cannot be written ({error.strerror})") from None
        return kept

    def _keep(self, kept: Path, contents: bytes) -> None:
        partial = kept.with_name(f"{kept.name}.partial")  # one name suffices: the caller holds the block's lock
        try:
            with partial.open("wb") as stream:
                stream.write(contents)
                stream.flush()
                os.fsync(stream.fileno())  # otherwise a power cut could leave the name with empty contents
            partial.replace(kept)
            self._count(len(contents))
        except OSError:
            partial.unlink(missing_ok=True)

    def _count(self, added: int) -> None:
        """Add to the number of bytes in use, and remove blocks above the limit.

        All processes count in one file, which is the lock file itself: the counter is only touched under its lock.
        """
        with file_lock(self._lock_path("used")) as counter:
            stored = os.pread(counter, 8, 0)
            used = added + (struct.unpack("<Q", stored)[0] if len(stored) == 8 else self._in_use() - added)
            if used > self.limit:
                used = self._remove_oldest()
            os.pwrite(counter, struct.pack("<Q", used), 0)

    def _blocks(self) -> list[tuple[int, str, int]]:
        """Return fetch time in nanoseconds, path and bytes of each block, the oldest first."""
        found = []
        for entry in os.scandir(self.folder / "blocks"):
            status = entry.stat()
            found.append((status.st_mtime_ns, entry.path, status.st_size))
        return sorted(found)

    def _in_use(self) -> int:
        return sum(size for _, _, size in self._blocks())

    def _remove_oldest(self) -> int:
        """Remove blocks until a tenth of the limit is free, and return the bytes that remain."""
        blocks = self._blocks()
        used = sum(size for _, _, size in blocks)
        for _, path, size in blocks:
            if used <= _KEPT * self.limit:
                break
            if not path.endswith(".partial"):  # another process is writing it
                Path(path).unlink()
                used -= size
        return used

    def _lock_path(self, name: str) -> Path:
        return self.folder / "locks" / name


def _part(kept: Path, start: int, stop: int) -> bytes | None:
    try:
        with kept.open("rb", buffering=0) as stream:
            return read_part(stream.fileno(), start, stop)
    except FileNotFoundError:
        return None


def _is_whole(kept: Path, checksum: str) -> bool:
    try:
        with kept.open("rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest() == checksum
    except FileNotFoundError:
        return False
