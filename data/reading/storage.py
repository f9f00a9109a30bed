"""Reads byte ranges from the files of a data set, in a local folder or at any URL that fsspec knows.

Only the requested range is read, so an image at the end of a shard costs no more than one at its start. A remote read
that fails is retried after growing pauses. A store that does not recover raises its own kind of error, so that a
network failure is never mistaken for an unreadable image.
"""

import functools
import hashlib
import io
import os
import resource
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from data.reading.block_cache import BLOCK, BlockCache
from recipes.errors import UserError
from recipes.local_paths import as_url, has_scheme, local_path

if TYPE_CHECKING:
    from fsspec import AbstractFileSystem

Result = TypeVar("Result")
Range = tuple[str, int, int]  # file, offset, size in bytes

_PAUSES = (0.1, 0.5, 2.0, 5.0, 10.0)  # seconds before each retry; after the last one the run stops
_REFUSED = (401, 403)  # HTTP status of a request without valid credentials, which no retry helps
_CONCURRENT_READS = 16  # in one process; a single read is bound by the latency of the store
_READ_AHEAD = 32  # images per process, which bounds the memory they take


def is_url(path: str | Path) -> bool:
    """Return whether `path` is a URL such as ``s3://bucket/folder``, and not a local path."""
    return "://" in str(path)


def place_of(path: str | Path) -> str | Path:
    """Return the place of a data set: a URL as text, or a local path.

    Raises:
        UserError: it is a URL that has lost a slash, as in `Path`.
    """
    if is_url(path):
        return str(path)
    if has_scheme(path):
        raise UserError(f"{path} is neither a folder nor a URL: write {as_url(path)}, as text")
    return local_path(path)


class LocalFolder:
    """The files of a folder."""

    def __init__(self, root: Path):
        self.root = root
        self._open = _OpenFiles()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": _OpenFiles()}

    def path(self, file: str) -> Path:
        return self.root / file

    def size(self, file: str) -> int:
        return self.path(file).stat().st_size

    def read(self, file: str, offset: int, size: int) -> bytes:
        """Return up to `size` bytes; fewer where the file ends."""
        return os.pread(self._open.descriptor(self.path(file)).number, size, offset)

    take = read

    def read_ahead(self, ranges: Iterable[Range]) -> None:
        """Do nothing: the operating system reads ahead on a local disk."""

    def read_whole(self, file: str) -> bytes:
        return self.path(file).read_bytes()

    def load_array(self, file: str, _checksum: str) -> NDArray[np.void]:
        """Return the memory-mapped array of an ``.npy`` file."""
        array: NDArray[np.void] = np.load(self.path(file), mmap_mode="r")
        return array


class RemoteFolder:
    """The files below a URL, read in ranges and, if there is one, through a cache of blocks on a local disk."""

    def __init__(self, root: str, cache: BlockCache | None = None):
        self.root = root.rstrip("/")
        self.cache = cache
        self.sizes: dict[str, int] = {}
        self._process_connection: _Connection | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_process_connection": None}

    def path(self, file: str) -> str:
        return f"{self.root}/{file}"

    def size(self, file: str) -> int:
        """Return the size in bytes.

        Raises:
            FileNotFoundError: there is no such file.
        """
        path = self.path(file)
        self.sizes[file] = self._connection.retried(lambda files: int(files.info(path)["size"]), path)
        return self.sizes[file]

    def read(self, file: str, offset: int, size: int) -> bytes:
        """Return up to `size` bytes; fewer where the file ends.

        Raises:
            UserError: the store does not answer, or refuses to be read.
        """
        if self.cache is None or size == 0:
            return self._fetch(file, offset, size)
        parts = []
        for block in range(offset // BLOCK, (offset + size - 1) // BLOCK + 1):
            start, stop = max(offset - block * BLOCK, 0), min(offset + size - block * BLOCK, BLOCK)
            fetch = functools.partial(self._fetch, file, block * BLOCK, BLOCK)
            parts.append(self.cache.read(self.path(file), block, start, stop, fetch))
        return b"".join(parts)

    def read_whole(self, file: str) -> bytes:
        path = self.path(file)
        return self._connection.retried(lambda files: bytes(files.cat_file(path)), path)

    def load_array(self, file: str, checksum: str) -> NDArray[np.void]:
        """Return the array of an ``.npy`` file: memory-mapped from the cache, or in memory if there is no cache.

        Args:
            file: its name.
            checksum: its SHA-256, in hexadecimal.

        Raises:
            ValueError: its contents have another checksum.
        """

        def fetch() -> bytes:
            contents = self.read_whole(file)
            if hashlib.sha256(contents).hexdigest() != checksum:
                raise ValueError("it changed since its manifest was written")
            return contents

        array: NDArray[np.void]
        if self.cache is None:
            array = np.load(io.BytesIO(fetch()))
        else:
            array = np.load(self.cache.whole_file(self.path(file), checksum, fetch), mmap_mode="r")
        return array

    def read_ahead(self, ranges: Iterable[Range]) -> None:
        """Start to read these ranges, which `take` will request in this order; forget those announced earlier."""
        self._connection.begin(self.read, ranges)

    def take(self, file: str, offset: int, size: int) -> bytes:
        """Return what `read` returns, from what was read ahead if possible."""
        return self._connection.take(self.read, (file, offset, size))

    @property
    def _connection(self) -> "_Connection":
        # Neither connections nor threads survive a fork.
        if self._process_connection is None or self._process_connection.process != os.getpid():
            self._process_connection = _Connection(self.root)
        return self._process_connection

    def _fetch(self, file: str, offset: int, size: int) -> bytes:
        path = self.path(file)
        expected = max(0, min(size, self.sizes.get(file, offset + size) - offset))

        def fetch(files: "AbstractFileSystem") -> bytes:
            found = bytes(files.cat_file(path, start=offset, end=offset + size))
            if len(found) > size:
                raise UserError(
                    f"the server of {path} does not answer ranged reads, which training needs: use another server, "
                    f"or copy the shards to a local disk"
                )
            if len(found) < expected:
                raise ConnectionError(f"{len(found)} of {expected} bytes arrived")
            return found

        try:
            return self._connection.retried(fetch, path)
        except FileNotFoundError:
            raise UserError(f"{path} no longer exists: restore it, then give the same command again") from None


class _Connection:
    """One process's connection to a store: fsspec's file system, and threads that read ahead."""

    def __init__(self, root: str):
        import fsspec

        self.process = os.getpid()
        try:
            self.files, _ = fsspec.core.url_to_fs(root)
        except (ImportError, ValueError) as error:
            raise UserError(f"{root} cannot be read: {' '.join(str(error).split())}") from None
        self.threads = ThreadPoolExecutor(_CONCURRENT_READS, "read-ahead")
        self.announced: deque[Range] = deque()
        self.in_flight: dict[Range, Future[bytes]] = {}
        self.failure: UserError | None = None

    def retried(self, read: Callable[["AbstractFileSystem"], Result], path: str) -> Result:
        """Return what ``read(files)`` returns, retried after each of `_PAUSES` while it fails.

        Raises:
            UserError: the last retry failed. Every later read then fails at once, so that the process can end.
        """
        started = time.monotonic()
        for pause in (*_PAUSES, None):
            if self.failure:
                raise self.failure
            try:
                return read(self.files)
            except (FileNotFoundError, UserError):
                raise
            except Exception as error:  # the libraries behind fsspec have no common exception for a lost connection
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
        raise AssertionError("the last try returns or raises")

    def begin(self, read: Callable[[str, int, int], bytes], ranges: Iterable[Range]) -> None:
        for future in self.in_flight.values():
            future.cancel()
        self.announced, self.in_flight = deque(ranges), {}
        self._submit(read)

    def take(self, read: Callable[[str, int, int], bytes], wanted: Range) -> bytes:
        future = self.in_flight.pop(wanted, None)
        self._submit(read)
        return future.result() if future else read(*wanted)

    def _submit(self, read: Callable[[str, int, int], bytes]) -> None:
        while self.announced and len(self.in_flight) < _READ_AHEAD:
            place = self.announced.popleft()
            if place not in self.in_flight:
                self.in_flight[place] = self.threads.submit(read, *place)


class _Descriptor:
    """A file descriptor that is closed with its last reference, so never in the middle of a read."""

    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self) -> None:
        if hasattr(self, "number"):  # it is missing if the file could not be opened
            os.close(self.number)


class _OpenFiles:
    """The last used files of this process, kept open, up to half of the process's limit for open files."""

    def __init__(self) -> None:
        self._files: OrderedDict[Path, _Descriptor] = OrderedDict()
        self._most = max(8, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)

    def descriptor(self, path: Path) -> _Descriptor:
        found = self._files.get(path)
        if found is None:
            found = self._files[path] = _Descriptor(path)
            while len(self._files) > self._most:
                self._files.popitem(last=False)
        return found
