"""Writes the index of a split, and returns the split's record for the manifest."""

import hashlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from data.atomic_io import flush, rename_durably
from data.reading.manifest import ShardRecord, SplitRecord
from data.reading.shards import INDEX_DTYPE


def write_split(
    dest: Path, work: Path, split: str, shards: list[ShardRecord], rows_of: Iterable[NDArray[np.void]], classes: int
) -> SplitRecord:
    """Write ``<split>.index.npy`` and return the split's record for the manifest.

    Args:
        dest, work: folder of the data set, and of unfinished files.
        split: its name.
        shards: the record of each shard, in their order.
        rows_of: the rows of each shard, dtype `INDEX_DTYPE`. Their shard numbers are filled in here.
        classes: number of classes.
    """
    samples = sum(shard["samples"] for shard in shards)
    path = dest / f"{split}.index.npy"
    temporary = work / f"{path.name}.partial"
    index = np.lib.format.open_memmap(temporary, "w+", INDEX_DTYPE, (samples,))
    start = 0
    for number, rows in enumerate(rows_of):
        rows["shard"] = number
        index[start : start + len(rows)] = rows
        start += len(rows)
    per_class = np.bincount(index["label"], minlength=classes).tolist()
    index.flush()
    with temporary.open("rb+") as stream:
        flush(stream)
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
    rename_durably(temporary, path)
    return {
        "samples": samples,
        "per_class": per_class,
        "bytes": sum(shard["bytes"] for shard in shards),
        "shards": shards,
        "index": path.name,
        "index_sha256": checksum,
    }
