"""Reading a whole data set again, and naming what is broken."""

import hashlib
import tarfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.inspection import Unreadable, inspect
from data.parallel import Worker, for_each
from data.shards import INDEX_DTYPE, read_manifest
from data.tar_samples import tar_samples
from recipes.errors import UserError


@dataclass(frozen=True)
class Check:
    """One shard to read: its path, its record in the manifest, its rows of the index, and the number of classes."""

    path: Path
    record: dict
    rows: np.ndarray | None  # None: the index cannot be read
    classes: int


def verify(path: str | Path, progress: bool = True, workers: int | None = None) -> list[str]:
    """Return the problems of the data set in a folder, one sentence each naming the file; empty where it is whole.

    Checksums, tar structure, the index against the tar members, labels, counts, and the decoding of every image.

    Raises:
        UserError: there is no folder or no manifest that could be read.
    """
    root = Path(path)
    manifest = read_manifest(root)
    problems, checks = [], []
    for split, record in manifest["splits"].items():
        index = _index(root / record["index"], record, problems)
        if index is not None:
            problems += _counts(root / record["index"], index, record, len(manifest["classes"]))
        for number, shard in enumerate(record["shards"]):
            rows = None if index is None else _rows_of_shard(index, number)
            checks.append(Check(root / shard["file"], shard, rows, len(manifest["classes"])))
    total = sum(check.record["samples"] for check in checks)
    found = {}
    for file, of_shard in for_each(
        check_shard, checks, None, workers, f"verifying {manifest['name']}", total, "images", progress
    ):
        found[file] = of_shard
    return problems + [problem for check in checks for problem in found[check.path]]


def check_shard(worker: Worker, check: Check) -> tuple[Path, list[str]]:
    """Return a shard's path and its problems."""
    path, record = check.path, check.record
    try:
        with path.open("rb") as stream:
            checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        size = path.stat().st_size
    except OSError as error:
        return path, [f"shard {path.name} cannot be read: {error.strerror}"]
    problems = []
    if size != record["bytes"]:
        problems.append(f"shard {path.name} has {size} bytes, its manifest says {record['bytes']}")
    elif checksum != record["sha256"]:
        problems.append(f"shard {path.name} has other contents than when its manifest was written (checksum)")
    problems += _sample_problems(worker, check)
    return path, problems


def _sample_problems(worker: Worker, check: Check) -> list[str]:
    path, problems, count = check.path, [], 0
    try:
        with path.open("rb") as stream:
            for count, sample in enumerate(tar_samples(path), 1):
                worker.advance()
                name = f"sample {sample.image or sample.key} in {path.name}"
                try:
                    label = int(sample.labels["cls"])
                except (KeyError, ValueError):
                    label = -1
                if not 0 <= label < check.classes:
                    problems.append(f"{name} has no label from 0 to {check.classes - 1}")
                if check.rows is not None and count <= len(check.rows):
                    row = check.rows[count - 1]
                    if (row["offset"], row["size"]) != (sample.offset, sample.size):
                        problems.append(f"{name} is not where the index says")
                    if row["label"] != label:
                        problems.append(f"{name} has label {label}, the index says {row['label']}")
                stream.seek(sample.offset)
                try:
                    inspect(stream.read(sample.size))
                except Unreadable as damage:
                    problems.append(f"{name} cannot be decoded: {damage.reason}")
    except (tarfile.TarError, EOFError, OSError) as error:
        problems.append(f"shard {path.name} is not a whole tar after {count} samples: {error}")
    expected = check.record["samples"]
    if count != expected:
        problems.append(f"shard {path.name} has {count} samples, its manifest says {expected}")
    if check.rows is not None and len(check.rows) != expected:
        problems.append(f"the index has {len(check.rows)} rows for shard {path.name}, its manifest says {expected}")
    return problems


def _index(path: Path, record: dict, problems: list[str]) -> np.ndarray | None:
    try:
        with path.open("rb") as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != record["index_sha256"]:
                problems.append(f"index {path.name} has other contents than when its manifest was written (checksum)")
        index = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError) as error:
        problems.append(f"index {path.name} cannot be read: {error}")
        return None
    if index.dtype != INDEX_DTYPE or index.ndim != 1 or (np.diff(index["shard"].astype(np.int64)) < 0).any():
        problems.append(f"index {path.name} is not a list of rows in the order of the shards")
        return None
    return index


def _counts(path: Path, index: np.ndarray, record: dict, classes: int) -> list[str]:
    problems = []
    if len(index) != record["samples"]:
        problems.append(f"index {path.name} has {len(index)} rows, the manifest counts {record['samples']} images")
    labels = index["label"]
    if len(labels) and (labels.min() < 0 or labels.max() >= classes):
        problems.append(f"index {path.name} has labels outside 0 to {classes - 1}")
    elif np.bincount(labels, minlength=classes).tolist() != record["per_class"]:
        problems.append(f"index {path.name} has other numbers of images per class than the manifest")
    return problems


def _rows_of_shard(index: np.ndarray, number: int) -> np.ndarray:
    start, end = np.searchsorted(index["shard"], [number, number + 1])
    return np.array(index[start:end])
