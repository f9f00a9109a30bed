"""Reads a whole data set again and names what is damaged."""

import hashlib
import tarfile
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.images.inspection import Unreadable, inspect
from data.images.pillow_warnings import named_warnings
from data.parallel import Worker, for_each
from data.printable_text import printable
from data.reading.manifest import ShardRecord, SplitRecord, read_manifest
from data.reading.shards import INDEX_DTYPE
from data.reading.storage import LocalFolder, RemoteFolder, place_of
from data.reading.tar_samples import TarSample, tar_samples
from data.sources.webdataset_shards import label_text


@dataclass(frozen=True)
class Check:
    """One shard to read, for one split.

    Attributes:
        path: of the tar, or of its temporary copy if it is at a URL.
        url: of the tar; None: it is on a local disk.
        record: its record in the manifest.
        rows: its part of the index; None if the index cannot be read.
        classes: number of classes.
        labels: for shards that others wrote, the class number of each text in their label members; None for our own.
    """

    path: Path
    url: str | None
    record: ShardRecord
    rows: NDArray[np.void] | None
    classes: int
    labels: dict[str, int] | None


def verify(path: str | Path, progress: bool = True, workers: int | None = None) -> list[str]:
    """Return the problems of the data set in a folder or at a URL, a sentence each that names the file.

    It compares checksums, tar structure, index, labels and counts, and decodes every image.

    Raises:
        UserError: there is no folder, or no manifest that can be read.
    """
    root = place_of(path)
    if isinstance(root, str):
        with tempfile.TemporaryDirectory(prefix="bigbatch-verify-") as copy:
            return _problems(RemoteFolder(root), Path(copy), progress, workers)
    return _problems(LocalFolder(root), root, progress, workers)


def _problems(folder: LocalFolder | RemoteFolder, root: Path, progress: bool, workers: int | None) -> list[str]:
    """Return the problems of a data set; `root` holds its files, or temporary copies of remote ones."""
    manifest = read_manifest(folder)
    url = None if isinstance(folder, LocalFolder) else folder.root
    problems: list[str] = []
    checks: list[Check] = []
    for record in manifest["splits"].values():
        if url is not None:
            (root / record["index"]).write_bytes(folder.read_whole(record["index"]))
        index = _index(root / record["index"], record, problems)
        if index is not None:
            problems += _counts(root / record["index"], index, record, len(manifest["classes"]))
        labels, shards = manifest.get("labels"), record["shards"]
        by_shard = [None] * len(shards) if index is None else _by_shard(index, len(shards))
        for shard, rows in zip(shards, by_shard):
            place = None if url is None else f"{url}/{shard['file']}"
            checks.append(Check(root / shard["file"], place, shard, rows, len(manifest["classes"]), labels))
    total = sum(check.record["samples"] for check in checks)
    tasks, what = list(enumerate(checks)), f"verifying {manifest['name']}"
    found = dict(for_each(_check_shard, tasks, None, workers, what, total, "images", progress))
    return problems + [problem for number in range(len(checks)) for problem in found[number]]


def _check_shard(worker: Worker, task: tuple[int, Check]) -> tuple[int, list[str]]:
    number, check = task
    if check.url is None:
        return number, _shard_problems(worker, check)
    url, _, file = check.url.rpartition("/")
    try:
        check.path.write_bytes(RemoteFolder(url).read_whole(file))  # a shard at a time, since tarfile needs to seek
        return number, _shard_problems(worker, check)
    except FileNotFoundError:
        return number, [f"shard {file} cannot be read: there is no {check.url}"]
    finally:
        check.path.unlink(missing_ok=True)


def _shard_problems(worker: Worker, check: Check) -> list[str]:
    path, record = check.path, check.record
    try:
        with path.open("rb") as stream:
            checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        size = path.stat().st_size
    except OSError as error:
        return [f"shard {path.name} cannot be read: {error.strerror}"]
    problems = []
    if size != record["bytes"]:
        problems.append(f"shard {path.name} has {size} bytes, its manifest says {record['bytes']}")
    elif checksum != record["sha256"]:
        problems.append(f"shard {path.name} changed since its manifest was written (checksum)")
    return problems + _sample_problems(worker, check)


def _sample_problems(worker: Worker, check: Check) -> list[str]:
    path, problems, seen = check.path, [], 0
    row_at = {} if check.rows is None else {int(row["offset"]): row for row in check.rows}
    try:
        with path.open("rb") as stream:
            for sample in tar_samples(path):
                row = row_at.pop(sample.offset, None)
                if row is None and check.rows is not None and check.labels is not None:
                    worker.advance(0)  # it belongs to the other split, or was left out as damaged or unlabelled
                    continue
                worker.advance()
                seen += 1
                stream.seek(sample.offset)
                name = printable(f"sample {sample.image or sample.key} in {path.name}")
                problems += [
                    f"{name} {problem}" for problem in _problems_of(sample, stream.read(sample.size), row, check)
                ]
    except (tarfile.TarError, EOFError, OSError) as error:
        problems.append(f"shard {path.name} is not a whole tar after {seen} samples: {error}")
    if seen != check.record["samples"] and not (check.rows is None and check.labels is not None):
        problems.append(f"shard {path.name} has {seen} samples, its manifest says {check.record['samples']}")
    if row_at:
        problems.append(f"the index has {len(row_at)} samples of {path.name} at places where none begins")
    return problems


def _problems_of(sample: TarSample, image: bytes, row: np.void | None, check: Check) -> Iterator[str]:
    label = _label(sample, check.labels)
    if label is None or not 0 <= label < check.classes:
        yield f"has no label from 0 to {check.classes - 1}"
    elif row is not None and row["label"] != label:
        yield f"has label {label}, the index says {row['label']}"
    if check.rows is not None and row is None:
        yield "is not in the index"
    elif row is not None and row["size"] != sample.size:
        yield f"has {sample.size} bytes, the index says {row['size']}"
    try:
        with named_warnings(partial(printable, sample.image)):
            inspect(image)
    except Unreadable as damage:
        yield f"cannot be decoded: {damage.reason}"


def _label(sample: TarSample, labels: dict[str, int] | None) -> int | None:
    text = label_text(sample)
    if text is None:
        return None
    if labels is not None:
        return labels.get(text)
    return int(text) if text.isdecimal() and len(text) < 100 else None


def _index(path: Path, record: SplitRecord, problems: list[str]) -> NDArray[np.void] | None:
    try:
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != record["index_sha256"]:
                problems.append(f"index {path.name} changed since its manifest was written (checksum)")
        index: NDArray[np.void] = np.load(path, mmap_mode="r")
    except Exception as error:  # numpy's reader raises almost any exception on damaged bytes
        problems.append(f"index {path.name} cannot be read: {error}")
        return None
    if index.dtype != INDEX_DTYPE or index.ndim != 1 or (np.diff(index["shard"].astype(np.int64)) < 0).any():
        problems.append(f"index {path.name} is not a list of rows in the order of the shards")
        return None
    return index


def _counts(path: Path, index: NDArray[np.void], record: SplitRecord, classes: int) -> list[str]:
    problems = []
    if len(index) != record["samples"]:
        problems.append(f"index {path.name} has {len(index)} rows, the manifest counts {record['samples']} images")
    labels = index["label"]
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        problems.append(f"index {path.name} has labels outside 0 to {classes - 1}")
    elif np.bincount(labels, minlength=classes).tolist() != record["per_class"]:
        problems.append(f"index {path.name} and the manifest count different numbers of images per class")
    return problems


def _by_shard(index: NDArray[np.void], shards: int) -> list[NDArray[np.void] | None]:
    bounds = np.searchsorted(np.ascontiguousarray(index["shard"]), np.arange(shards + 1))
    return [np.array(index[start:end]) for start, end in zip(bounds[:-1], bounds[1:])]
