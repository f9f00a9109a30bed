"""Reading a data set that `bigbatch shard` wrote: its manifest, its indexes, and the bytes of any one image.

A data set is a folder::

    manifest.json      classes, counts, and the size and checksum of every file
    train.index.npy    one row of `INDEX_DTYPE` per image; the row number is the sample's id
    train-000000.tar   plain WebDataset: `<key>.<extension>` is the image as it was found, `<key>.cls` its label

Nothing here is executed, and nothing is held per sample: indexes are memory-mapped.
"""

import hashlib
import json
import os
import resource
import tarfile
from collections import OrderedDict
from pathlib import Path

import numpy as np

from recipes.errors import UserError

FORMAT = 1
MANIFEST = "manifest.json"
INDEX_DTYPE = np.dtype([("shard", "<u4"), ("offset", "<u8"), ("size", "<u4"), ("label", "<i4")])


class Split:
    """The images of one split, e.g. "train", in the order of its index. Survives a fork and a pickle to a worker."""

    def __init__(self, root: Path, name: str, record: dict):
        self.name = name
        self.per_class: list[int] = record["per_class"]
        self.shard_paths = [root / shard["file"] for shard in record["shards"]]
        self._index_path = root / record["index"]
        self._samples = record["samples"]
        self._index = None
        self._open = _OpenFiles()

    def __len__(self) -> int:
        return self._samples

    def __getstate__(self) -> dict:
        # A pickled memory map would carry every row; the other process maps the file again.
        return {**self.__dict__, "_index": None, "_open": _OpenFiles()}

    @property
    def index(self) -> np.ndarray:
        """The memory-mapped rows, dtype `INDEX_DTYPE`; offset and size are bytes inside the shard's tar file."""
        if self._index is None:
            self._index = np.load(self._index_path, mmap_mode="r")
        return self._index

    @property
    def labels(self) -> np.ndarray:
        """int32, the class number of every sample: a view of the index."""
        return self.index["label"]

    def read(self, i: int) -> bytes:
        """Return the encoded image of sample `i`.

        Raises:
            OSError: the shard cannot be read, or ends before the image does; names the shard.
        """
        row = self.index[i]
        path, size = self.shard_paths[row["shard"]], int(row["size"])
        found = os.pread(self._open.descriptor(path).number, size, int(row["offset"]))
        if len(found) != size:
            raise OSError(f"{path} ends inside sample {i} of {self.name}: it changed since its manifest was written")
        return found

    def sample_name(self, i: int) -> str:
        """Name of sample `i` for messages: the tar member, made from the photograph's name, and the shard file."""
        row = self.index[i]
        path = self.shard_paths[row["shard"]]
        header = os.pread(self._open.descriptor(path).number, tarfile.BLOCKSIZE, int(row["offset"]) - tarfile.BLOCKSIZE)
        member = tarfile.TarInfo.frombuf(header, "utf-8", "surrogateescape").name
        return f"{member} in {path.name}"


class ShardSet:
    """A whole data set: `root`, `name`, `classes`, `splits` by name, and `digest`, the identity of its contents.

    `digest` is the SHA-256 in hexadecimal over the classes and the checksums of every index and shard.
    """

    def __init__(self, root: Path, manifest: dict):
        self.root = root
        self.name: str = manifest["name"]
        self.classes: tuple[str, ...] = tuple(manifest["classes"])
        self.splits = {name: Split(root, name, record) for name, record in manifest["splits"].items()}
        self.digest = _digest(manifest)

    @classmethod
    def open(cls, path: str | Path) -> "ShardSet":
        """Return the data set in that folder, having looked at every file's size but at no file's contents.

        Raises:
            UserError: the folder, its manifest, an index or a shard is missing, or a file has another size.
        """
        root = Path(path)
        manifest = read_manifest(root)
        for split, record in manifest["splits"].items():
            for shard in record["shards"]:
                _check_size(root, root / shard["file"], shard["bytes"])
            rows = _rows(root, root / record["index"])
            if rows != record["samples"]:
                raise UserError(
                    f"{root / record['index']} has {rows} rows but the manifest counts {record['samples']} {split} "
                    f"images: copy {root} again or remake it with `bigbatch shard`"
                )
        return cls(root, manifest)

    def split(self, name: str) -> Split:
        """Return the split of that name.

        Raises:
            UserError: there is none.
        """
        if name not in self.splits:
            raise UserError(f"{self.root} has no split {name!r}, only {', '.join(map(repr, self.splits))}")
        return self.splits[name]


def read_manifest(root: Path) -> dict:
    """Return the manifest of a data set.

    Raises:
        UserError: there is none, or it is damaged or of another format.
    """
    if not root.is_dir():
        raise UserError(f"there is no folder {root}: make it with `bigbatch shard SOURCE {root}`")
    try:
        manifest = json.loads((root / MANIFEST).read_text())
    except FileNotFoundError:
        raise UserError(f"{root} has no {MANIFEST}: `bigbatch shard SOURCE {root}` makes it, or finishes it") from None
    except ValueError:
        raise UserError(f"{root / MANIFEST} is damaged: remake the folder with `bigbatch shard`") from None
    if not isinstance(manifest, dict) or manifest.get("format") != FORMAT:
        raise UserError(f"{root / MANIFEST} is not of format {FORMAT}, which this version of bigbatch reads")
    return manifest


def _check_size(root: Path, path: Path, expected: int) -> None:
    try:
        size = path.stat().st_size
    except OSError as error:
        raise UserError(f"shard {path} cannot be read ({error.strerror}): copy {root} again") from None
    if size != expected:
        raise UserError(f"shard {path} has {size} bytes instead of {expected}: copy {root} again")


def _rows(root: Path, path: Path) -> int:
    try:
        index = np.load(path, mmap_mode="r")
    except (OSError, ValueError) as error:
        raise UserError(f"index {path} cannot be read ({error}): copy {root} again") from None
    if index.dtype != INDEX_DTYPE or index.ndim != 1:
        raise UserError(f"{path} is not an index of format {FORMAT}: remake {root} with `bigbatch shard`")
    return len(index)


def _digest(manifest: dict) -> str:
    contents = [manifest["classes"]]
    for name, record in manifest["splits"].items():
        contents.append([name, record["index_sha256"], [shard["sha256"] for shard in record["shards"]]])
    return hashlib.sha256(json.dumps(contents).encode()).hexdigest()


class _Descriptor:
    """A file descriptor that closes when nobody reads through it any more, also in the middle of another's read."""

    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def __del__(self):
        if hasattr(self, "number"):
            os.close(self.number)


class _OpenFiles:
    """The last used shards of this process, kept open: as many as half of what the process may open."""

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
