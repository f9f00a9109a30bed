"""Reading a data set that `bigbatch shard` wrote: its manifest, its indexes, and the bytes of any one image.

A data set is a folder, on a disk or below a URL::

    manifest.json      classes, counts, and the size and checksum of every file
    train.index.npy    one row of `INDEX_DTYPE` per image; the row number is the sample's id
    train-000000.tar   plain WebDataset: `<key>.<extension>` is the image, `<key>.cls` its label

Nothing here is executed. Nothing is held in memory per sample, because indexes are memory-mapped; only the index of a
URL without a cache folder is loaded.
"""

import hashlib
import tarfile
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.printable_text import printable
from data.reading.block_cache import BlockCache
from data.reading.manifest import FORMAT, Manifest, ShardRecord, SplitRecord, contents_digest, read_manifest
from data.reading.sampled_checksum import sampled_checksum
from data.reading.storage import LocalFolder, RemoteFolder, place_of
from recipes.errors import UserError
from recipes.local_paths import local_path

INDEX_DTYPE = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("size", "<u4"), ("label", "<i4")])

_CHECKED_AT_ONCE = 16  # shards; a store answers each request for a size after tens of milliseconds


class Split:
    """The images of one split, e.g. "train", in the order of its index.

    It can be used after a fork, and pickled to a worker process.
    """

    def __init__(self, folder: LocalFolder | RemoteFolder, name: str, record: SplitRecord):
        self.name = name
        self.folder = folder
        self.per_class: list[int] = record["per_class"]
        self.files = [shard["file"] for shard in record["shards"]]
        self._bytes = [shard["bytes"] for shard in record["shards"]]
        self.shard_paths = [folder.path(file) for file in self.files]
        self.index_path = folder.path(record["index"])
        self._index_file, self._index_checksum = record["index"], record["index_sha256"]
        self._samples = record["samples"]
        self._index: NDArray[np.void] | None = None

    def __len__(self) -> int:
        return self._samples

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map carries every row. The other process maps the file itself.
        return {**self.__dict__, "_index": None}

    @property
    def index(self) -> NDArray[np.void]:
        """The memory-mapped rows, dtype `INDEX_DTYPE`; offset and size are bytes inside the shard's tar file."""
        if self._index is None:
            self._index = self.folder.load_array(self._index_file, self._index_checksum)
        return self._index

    def check_index(self) -> None:
        """Compare the checksum of the index, on a local disk, with the manifest: a changed label would train unnoticed.

        Raises:
            UserError: it changed since its manifest was written.
        """
        with Path(self.index_path).open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != self._index_checksum:
                raise UserError(
                    f"index {self.index_path} changed since its manifest was written: copy {self.folder.root} again"
                )

    @property
    def labels(self) -> NDArray[np.int32]:
        """The class number of every sample: a view of the index."""
        labels: NDArray[np.int32] = self.index["label"]
        return labels

    def read_ahead(self, samples: Iterable[int]) -> None:
        """Announce which samples will be read next, in this order. Remote storage starts to fetch them at once."""
        self.folder.read_ahead(self._place(i) for i in samples)

    def read(self, i: int) -> bytes:
        """Return the encoded image of sample `i`.

        Raises:
            OSError: the shard cannot be read, or ends before the image does; names the shard.
            UserError: remote storage does not answer.
        """
        file, offset, size = self._place(i)
        found = self.folder.take(file, offset, size)
        if len(found) != size:
            path = self.folder.path(file)
            raise OSError(f"{path} ends inside sample {i} of {self.name}: it changed since its manifest was written")
        return found

    def sample_name(self, i: int) -> str:
        """Return a name of sample `i` for messages: its tar member, which is named after the image, and its shard."""
        file, offset, _ = self._place(i)
        header = self.folder.read(file, offset - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE)
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        return printable(f"{member} in {PurePosixPath(file).name}")

    def _place(self, i: int) -> tuple[str, int, int]:
        """Return the shard file of sample `i`, and the offset and size of its image there, in bytes."""
        row = self.index[i]
        shard, offset, size = int(row["shard"]), int(row["offset"]), int(row["size"])
        if shard >= len(self.files) or offset + size > self._bytes[shard]:
            raise UserError(f"{self.index_path} is damaged: sample {i} is in no shard; copy {self.folder.root} again")
        return self.files[shard], offset, size


class ShardSet:
    """A whole data set.

    Attributes:
        root: its folder or URL.
        name: the data set's name.
        classes: names of the classes, by their number.
        splits: by name, e.g. "train" and "val".
        digest: identity of its contents, see `data.reading.manifest.contents_digest`.
        upright: whether the images were turned as their EXIF orientation says when the shards were written.
    """

    def __init__(self, folder: LocalFolder | RemoteFolder, manifest: Manifest):
        self.folder = folder
        self.root = folder.root
        self.name = manifest["name"]
        self.classes = tuple(manifest["classes"])
        self.splits = {name: Split(folder, name, record) for name, record in manifest["splits"].items()}
        self.digest = contents_digest(manifest)
        self.upright: bool = manifest.get("source", {}).get("options", {}).get("upright", False)
        self._shards = [shard for record in manifest["splits"].values() for shard in record["shards"]]

    @classmethod
    def open(cls, path: str | Path, cache: str | Path | None = None, cache_bytes: int = 0) -> "ShardSet":
        """Return the data set at a path, after comparing every file's size, but no shard's contents, with the manifest.

        Args:
            path: a folder, or a URL that fsspec knows, e.g. ``s3://bucket/folder``.
            cache: folder for blocks of a remote data set, shared by all processes of a node; None: no cache.
            cache_bytes: limit for the size of all blocks in it.

        Raises:
            UserError: the folder, its manifest, an index or a shard is missing, or a file has another size.
        """
        place = place_of(path)
        folder = LocalFolder(place) if isinstance(place, Path) else RemoteFolder(place)
        manifest = read_manifest(folder)
        if cache is not None and isinstance(folder, RemoteFolder):
            folder.cache = BlockCache(local_path(cache), cache_bytes, contents_digest(manifest))
        opened = cls(folder, manifest)
        _at_once(lambda shard: _check_size(folder, shard["file"], shard["bytes"]), opened._shards, folder)
        for name, split in opened.splits.items():
            rows = _rows(split, folder)
            if rows != len(split):
                raise UserError(
                    f"{split.index_path} has {rows} rows but the manifest counts {len(split)} {name} "
                    f"images: copy {path} again or remake it with `bigbatch shard`"
                )
        return opened

    def check_sampled_checksums(self, part: int = 0, parts: int = 1) -> None:
        """Compare the sampled checksum of shards with the manifest, and for the first part the checksum of each index.

        Args:
            part, parts: check one shard in `parts`, beginning with number `part`, so that ranks can divide the work.

        Raises:
            UserError: a shard or an index changed since its manifest was written.
        """
        if part == 0 and isinstance(self.folder, LocalFolder):  # a remote index is checked when it is fetched
            for split in self.splits.values():
                split.check_index()
        _at_once(self._check_sampled_checksum, self._shards[part::parts], self.folder)

    def _check_sampled_checksum(self, shard: ShardRecord) -> None:
        file, expected = shard["file"], shard.get("spots_sha256")
        if not expected:  # a manifest of an early version
            return
        if sampled_checksum(lambda offset, size: self.folder.read(file, offset, size), shard["bytes"]) != expected:
            raise UserError(
                f"shard {self.folder.path(file)} changed since its manifest was written: copy {self.root} again, "
                f"or find the damage with `bigbatch verify`"
            )

    def split(self, name: str) -> Split:
        """Return the split of that name.

        Raises:
            UserError: there is none.
        """
        if name not in self.splits:
            raise UserError(f"{self.root} has no split {name!r}, only {', '.join(map(repr, self.splits))}")
        return self.splits[name]


def _at_once(
    check: Callable[[ShardRecord], None], shards: list[ShardRecord], folder: LocalFolder | RemoteFolder
) -> None:
    """Check shards in their order; remote ones several at a time, because each check waits for the store's answer."""
    if isinstance(folder, LocalFolder):
        for shard in shards:
            check(shard)
        return
    with ThreadPoolExecutor(_CHECKED_AT_ONCE) as threads:
        for _ in threads.map(check, shards):
            pass


def _check_size(folder: LocalFolder | RemoteFolder, file: str, expected: int) -> None:
    path = folder.path(file)
    try:
        size = folder.size(file)
    except OSError as error:
        if PurePosixPath(file).is_absolute():  # a shard that another tool wrote, indexed where it lies
            raise UserError(
                f"shard {path}, to which {folder.root} refers, cannot be read ({error.strerror or error}): if it was "
                f"moved, remake {folder.root} with `bigbatch shard` from its new place"
            ) from None
        raise UserError(f"shard {path} cannot be read ({error.strerror or error}): copy {folder.root} again") from None
    if size != expected:
        raise UserError(f"shard {path} has {size} bytes instead of {expected}: copy {folder.root} again")


def _rows(split: Split, folder: LocalFolder | RemoteFolder) -> int:
    path = split.index_path
    try:
        index = split.index
    except UserError:
        raise
    except Exception as error:  # numpy's reader raises almost any exception on damaged bytes
        raise UserError(f"index {path} cannot be read ({error}): copy {folder.root} again") from None
    if index.dtype != INDEX_DTYPE or index.ndim != 1:
        raise UserError(f"{path} is not an index of format {FORMAT}: remake {folder.root} with `bigbatch shard`")
    return len(index)
