"""Bytes out of the files of a data set, by position: from a local folder, or by ranged reads from any URL that fsspec knows.

Nothing is read but what was asked for, so no image costs more because it lies at the end of a shard. A remote read that
fails is tried again with growing pauses; a store that stays away is an error of its own kind, never a bad photograph.
"""

import hashlib
import io
import os
import resource
import time
from collections import OrderedDict, deque
from collections.abc import Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import numpy as np

from data.reading.block_cache import BLOCK, BlockCache
from recipes.errors import UserError

_PAUSES = (0.1, 0.5, 2.0, 5.0, 10.0)  # seconds before each further try; then the run stops
_REFUSED = (401, 403)  # what a web server answers then
_AT_ONCE = 16  # remote reads under way in one process
_AHEAD = 32  # remote images read ahead in one process, so at most as many are held in memory


def is_url(path: str | Path) -> bool:
    """Whether that is a URL and not a path, e.g. ``s3://bucket/folder``."""
    return "://" in str(path)


class LocalFolder:
    """The files of a folder."""

    def __init__(self, root: Path):
        self.root = root
        self._open = _OpenFiles()

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_open": _OpenFiles()}

    def path(self, file: str) -> Path:
        return self.root / file

    def size(self, file: str) -> int:
        return self.path(file).stat().st_size

    def read(self, file: str, offset: int, size: int) -> bytes:
        """Return up to `size` bytes; fewer where the file ends."""
        return os.pread(self._open.descriptor(self.path(file)).number, size, offset)

    take = read

    def read_ahead(self, ranges: Iterable[tuple[str, int, int]]) -> None:
        """Nothing: the system reads a local disk ahead."""

    def read_whole(self, file: str) -> bytes:
        return self.path(file).read_bytes()

    def load_array(self, file: str, _checksum: str) -> np.ndarray:
        """Return the memory-mapped array of an ``.npy`` file."""
        return np.load(self.path(file), mmap_mode="r")


class RemoteFolder:
    """The files below a URL, read in ranges, through a cache of blocks on a local disk where there is one."""

    def __init__(self, root: str, cache: BlockCache | None = None):
        self.root = root.rstrip("/")
        self.cache = cache
        self.sizes: dict[str, int] = {}
        self._of_process = None

    def __getstate__(self) -> dict:
        return {**self.__dict__, "_of_process": None}

    def path(self, file: str) -> str:
        return f"{self.root}/{file}"

    def size(self, file: str) -> int:
        """Raises FileNotFoundError where there is no such file."""
        path = self.path(file)
        self.sizes[file] = self._connection.patiently(lambda files: int(files.info(path)["size"]), path)
        return self.sizes[file]

    def read(self, file: str, offset: int, size: int) -> bytes:
        """Return up to `size` bytes; fewer where the file ends.

        Raises:
            UserError: the store does not answer, or does not let us read.
        """
        if self.cache is None or size == 0:
            return self._fetch(file, offset, size)
        parts = []
        for block in range(offset // BLOCK, (offset + size - 1) // BLOCK + 1):
            start, stop = max(offset - block * BLOCK, 0), min(offset + size - block * BLOCK, BLOCK)
            parts.append(
                self.cache.read(self.path(file), block, start, stop, lambda: self._fetch(file, block * BLOCK, BLOCK))
            )
        return b"".join(parts)

    def read_whole(self, file: str) -> bytes:
        path = self.path(file)
        return self._connection.patiently(lambda files: files.cat_file(path), path)

    def load_array(self, file: str, checksum: str) -> np.ndarray:
        """Return the array of an ``.npy`` file with that SHA-256: memory-mapped from the cache, or in memory without one.

        Raises:
            ValueError: its contents are others.
        """

        def fetch() -> bytes:
            contents = self.read_whole(file)
            if hashlib.sha256(contents).hexdigest() != checksum:
                raise ValueError("it has other contents than when its manifest was written")
            return contents

        if self.cache is None:
            return np.load(io.BytesIO(fetch()))
        return np.load(self.cache.whole_file(self.path(file), fetch), mmap_mode="r")

    def read_ahead(self, ranges: Iterable[tuple[str, int, int]]) -> None:
        """Begin to read these ranges, which are going to be asked for in this order; forgets what was begun before."""
        self._connection.begin(self.read, ranges)

    def take(self, file: str, offset: int, size: int) -> bytes:
        """As `read`, from what was read ahead if it was."""
        return self._connection.take(self.read, (file, offset, size))

    @property
    def _connection(self) -> "_Connection":
        # Neither connections nor threads survive a fork.
        if self._of_process is None or self._of_process.process != os.getpid():
            self._of_process = _Connection(self.root)
        return self._of_process

    def _fetch(self, file: str, offset: int, size: int) -> bytes:
        path = self.path(file)
        expected = max(0, min(size, self.sizes.get(file, offset + size) - offset))

        def fetch(files) -> bytes:
            found = files.cat_file(path, start=offset, end=offset + size)
            if len(found) < expected:
                raise ConnectionError(f"{len(found)} of {expected} bytes came")
            return found

        try:
            return self._connection.patiently(fetch, path)
        except FileNotFoundError:
            raise UserError(f"{path} is not there any more: bring it back, then give the same command again") from None


class _Connection:
    """What one process needs to read from a store: fsspec's file system, and reads under way in threads."""

    def __init__(self, root: str):
        import fsspec

        self.process = os.getpid()
        try:
            self.files, _ = fsspec.core.url_to_fs(root)
        except (ImportError, ValueError) as error:
            raise UserError(f"{root} cannot be read: {' '.join(str(error).split())}") from None
        self.threads = ThreadPoolExecutor(_AT_ONCE, "read-ahead")
        self.to_come: deque[tuple] = deque()
        self.under_way: dict[tuple, Future] = {}
        self.failure: UserError | None = None

    def patiently(self, read, path: str):
        """Return what ``read(files)`` returns, tried again after each of `_PAUSES` while it fails.

        Raises:
            UserError: it failed for good; then every later read fails at once, so that the process can end.
        """
        started = time.monotonic()
        for pause in (*_PAUSES, None):
            if self.failure:
                raise self.failure
            try:
                return read(self.files)
            except FileNotFoundError:
                raise
            except Exception as error:  # the libraries behind fsspec have no common kind for a lost connection
                if isinstance(error, PermissionError) or getattr(error, "status", None) in _REFUSED:
                    raise UserError(f"{path} may not be read ({error}): check the credentials of the store") from None
                if pause is not None:
                    time.sleep(pause)
                    continue
                seconds, reason = time.monotonic() - started, " ".join(f"{type(error).__name__}: {error}".split())
                self.failure = UserError(
                    f"{path} could not be read in {len(_PAUSES) + 1} tries over {seconds:.0f} seconds ({reason}): "
                    f"check the network, then give the same command again"
                )
                raise self.failure from None

    def begin(self, read, ranges: Iterable[tuple]) -> None:
        for future in self.under_way.values():
            future.cancel()
        self.to_come, self.under_way = deque(ranges), {}
        self._go_on(read)

    def take(self, read, wanted: tuple) -> bytes:
        future = self.under_way.pop(wanted, None)
        self._go_on(read)
        return future.result() if future else read(*wanted)

    def _go_on(self, read) -> None:
        while self.to_come and len(self.under_way) < _AHEAD:
            place = self.to_come.popleft()
            if place not in self.under_way:
                self.under_way[place] = self.threads.submit(read, *place)


class _Descriptor:
    """A file descriptor that closes when nobody reads through it any more, also in the middle of another's read."""

    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self):
        if hasattr(self, "number"):
            os.close(self.number)


class _OpenFiles:
    """The last used files of this process, kept open: as many as half of what the process may open."""

    def __init__(self):
        self._files: OrderedDict[Path, _Descriptor] = OrderedDict()
        self._most = max(8, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    def descriptor(self, path: Path) -> _Descriptor:
        found = self._files.get(path)
        if found is None:
            found = self._files[path] = _Descriptor(path)
            while len(self._files) > self._most:
                self._files.popitem(last=False)
        return found
