"""Reading a data set that `bigbatch shard` wrote: its manifest, its indexes, and the bytes of any one image.

A data set is a folder, on a disk or below a URL::

    manifest.json      classes, counts, and the size and checksum of every file
    train.index.npy    one row of `INDEX_DTYPE` per image; the row number is the sample's id
    train-000000.tar   plain WebDataset: `<key>.<extension>` is the image as it was found, `<key>.cls` its label

Nothing here is executed, and nothing is held per sample: indexes are memory-mapped, but for a URL without a cache folder.
"""

import hashlib
import json
import tarfile
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path, PurePosixPath

import numpy as np

from data.reading.block_cache import BlockCache
from data.reading.sampled_checksum import sampled_checksum
from data.reading.storage import LocalFolder, RemoteFolder, is_url
from recipes.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
INDEX_DTYPE = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("size", "<u4"), ("label", "<i4")])


_CHECKED_AT_ONCE = 16  # shards


class Split:
    """The images of one split, e.g. "train", in the order of its index. Survives a fork and a pickle to a worker."""

    def __init__(self, folder: LocalFolder | RemoteFolder, name: str, record: dict):
        self.name = name
        self.folder = folder
        self.per_class: list[int] = record["per_class"]
        self.files = [shard["file"] for shard in record["shards"]]
        self.shard_paths = [folder.path(file) for file in self.files]
        self.index_path = folder.path(record["index"])
        self._index_file, self._index_checksum = record["index"], record["index_sha256"]
        self._samples = record["samples"]
        self._index = None

    def __len__(self) -> int:
        return self._samples

    def __getstate__(self) -> dict:
        # A pickled memory map would carry every row; the other process maps the file again.
        return {**self.__dict__, "_index": None}

    @property
    def index(self) -> np.ndarray:
        """The memory-mapped rows, dtype `INDEX_DTYPE`; offset and size are bytes inside the shard's tar file."""
        if self._index is None:
            self._index = self.folder.load_array(self._index_file, self._index_checksum)
        return self._index

    @property
    def labels(self) -> np.ndarray:
        """int32, the class number of every sample: a view of the index."""
        return self.index["label"]

    def read_ahead(self, samples: Iterable[int]) -> None:
        """Say which samples are going to be read next and in this order; remote storage begins with them at once."""
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
        """Name of sample `i` for messages: the tar member, made from the photograph's name, and the shard file."""
        file, offset, _ = self._place(i)
        header = self.folder.read(file, offset - tarfile.BLOCKSIZE, tarfile.BLOCKSIZE)
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        return f"{member} in {PurePosixPath(file).name}"

    def _place(self, i: int) -> tuple[str, int, int]:
        """The shard file of sample `i`, and offset and size of its image there in bytes."""
        row = self.index[i]
        return self.files[row["shard"]], int(row["offset"]), int(row["size"])


class ShardSet:
    """A whole data set: `root`, `name`, `classes`, `splits` by name, and `digest`, the identity of its contents.

    `digest` is the SHA-256 in hexadecimal over the classes and the checksums of every index and shard.
    """

    def __init__(self, folder: LocalFolder | RemoteFolder, manifest: dict):
        self.folder = folder
        self.root = folder.root
        self.name: str = manifest["name"]
        self.classes: tuple[str, ...] = tuple(manifest["classes"])
        self.splits = {name: Split(folder, name, record) for name, record in manifest["splits"].items()}
        self.digest = _digest(manifest)
        self._shards = [shard for record in manifest["splits"].values() for shard in record["shards"]]

    @classmethod
    def open(cls, path: str | Path, cache: str | Path | None = None, cache_bytes: int = 0) -> "ShardSet":
        """Return the data set there, having looked at every file's size but at no shard's contents.

        Args:
            path: a folder, or a URL that fsspec knows, e.g. ``s3://bucket/folder``.
            cache: folder for blocks of a remote data set, shared by all processes of a node; None: none.
            cache_bytes: largest size of the blocks in it.

        Raises:
            UserError: the folder, its manifest, an index or a shard is missing, or a file has another size.
        """
        folder = RemoteFolder(str(path)) if is_url(path) else LocalFolder(Path(path))
        manifest = _manifest(folder)
        if cache is not None and isinstance(folder, RemoteFolder):
            folder.cache = BlockCache(Path(cache), cache_bytes, _digest(manifest))
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
        """Compare a few places of every shard with what the manifest says; of each `parts` shards, only number `part`.

        Raises:
            UserError: a shard has other contents than when its manifest was written.
        """
        _at_once(self._check_sampled_checksum, self._shards[part::parts], self.folder)

    def _check_sampled_checksum(self, shard: dict) -> None:
        file, expected = shard["file"], shard.get("spots_sha256")
        if (
            expected
            and sampled_checksum(lambda offset, size: self.folder.read(file, offset, size), shard["bytes"]) != expected
        ):
            raise UserError(
                f"shard {self.folder.path(file)} changed since its manifest was written: copy {self.root} again, "
                f"or see what `bigbatch verify` says"
            )

    def split(self, name: str) -> Split:
        """Return the split of that name.

        Raises:
            UserError: there is none.
        """
        if name not in self.splits:
            raise UserError(f"{self.root} has no split {name!r}, only {', '.join(map(repr, self.splits))}")
        return self.splits[name]


def read_manifest(root: Path) -> dict:
    """Return the manifest of a data set in a folder.

    Raises:
        UserError: there is none, or it is damaged or of another format.
    """
    return _manifest(LocalFolder(root))


def _manifest(folder: LocalFolder | RemoteFolder) -> dict:
    root, path = folder.root, folder.path(MANIFEST)
    if isinstance(folder, LocalFolder) and not root.is_dir():
        raise UserError(f"there is no folder {root}: make it with `bigbatch shard SOURCE {root}`")
    try:
        manifest = json.loads(folder.read_whole(MANIFEST))
    except FileNotFoundError:
        raise UserError(f"{root} has no {MANIFEST}: `bigbatch shard SOURCE FOLDER` makes it, or finishes it") from None
    except ValueError as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{path} is damaged: remake the folder with `bigbatch shard`") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{path} is not of format {FORMAT}, which this version of bigbatch reads")
    return manifest


def _at_once(check, shards: list[dict], folder: LocalFolder | RemoteFolder) -> None:
    """Check shards in their order; remote ones several at once."""
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
        raise UserError(f"shard {path} cannot be read ({error.strerror or error}): copy {folder.root} again") from None
    if size != expected:
        raise UserError(f"shard {path} has {size} bytes instead of {expected}: copy {folder.root} again")


def _rows(split: Split, folder: LocalFolder | RemoteFolder) -> int:
    path = split.index_path
    try:
        index = split.index
    except UserError:
        raise
    except (OSError, ValueError) as error:
        raise UserError(f"index {path} cannot be read ({error}): copy {folder.root} again") from None
    if index.dtype != INDEX_DTYPE or index.ndim != 1:
        raise UserError(f"{path} is not an index of format {FORMAT}: remake {folder.root} with `bigbatch shard`")
    return len(index)


def _digest(manifest: dict) -> str:
    contents = [manifest["classes"]]
    for name, record in manifest["splits"].items():
        contents.append([name, record["index_sha256"], [shard["sha256"] for shard in record["shards"]]])
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()
