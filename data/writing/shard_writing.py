"""Writes shards in worker processes: each writes parts, and the one that finishes the last part of a shard joins them.

A joined shard is flushed to the disk, read back for its checksums, and recorded as finished.
"""

import hashlib
import json
import os
import shutil
import tarfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.atomic_io import flush, rename_durably, write_durably
from data.parallel import Worker
from data.reading.sampled_checksum import sampled_checksum
from data.reading.shards import INDEX_DTYPE
from data.writing.shard_parts import ShardPart, WriterContext, part_findings, part_path, write_part
from recipes.parsing import parse_json

_COPIED_AT_ONCE = 2**20  # bytes


def write_part_or_shard(worker: Worker, part: ShardPart) -> None:
    """Write one part of a shard. If all its parts are written then, write the shard and the record that it is finished.

    So unfinished parts take no more space than the shards in work, and a finished shard survives a kill.
    """
    write_part(worker, part)
    context: WriterContext = worker.shared
    paths = [part_path(context.work, part.file, number) for number in range(part.count)]
    if not all(path.exists() for path in paths):
        return
    temporary = context.work / f"{part.file}.{os.getpid()}.partial"
    try:
        paths[0].rename(temporary)
    except FileNotFoundError:
        return  # two processes have finished the last two parts at the same time, and the other one joins them
    try:
        _join(context, part.file, temporary, paths)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def recorded(context: WriterContext, file: str) -> dict[str, Any] | None:
    """Return the record of a finished shard: counts, bytes, checksums, images left out; None if it is not finished."""
    path = context.dest / file
    try:
        values: dict[str, Any] = parse_json((context.work / f"{file}.json").read_bytes())
        return values if path.stat().st_size == values["bytes"] else None
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # not finished, or its record is damaged
        return None


def recorded_rows(context: WriterContext, file: str) -> NDArray[np.void]:
    """Return the rows of a finished shard, dtype `INDEX_DTYPE`, in the order of the tar. Their shard number is 0."""
    return np.fromfile(context.work / f"{file}.rows", INDEX_DTYPE)


def _join(context: WriterContext, file: str, temporary: Path, paths: list[Path]) -> None:
    """Append all parts to the first, which is at `temporary`, and make the result the shard `file`."""
    ends = []
    with temporary.open("r+b") as stream:
        ends.append(stream.seek(0, os.SEEK_END))
        for path in paths[1:]:
            with path.open("rb") as part:
                shutil.copyfileobj(part, stream, _COPIED_AT_ONCE)
            path.unlink()
            ends.append(stream.tell())
        end = ends[-1] + 2 * tarfile.BLOCKSIZE  # two blocks of zeros end a tar, whose size is a multiple of a record's
        stream.truncate(-(-end // tarfile.RECORDSIZE) * tarfile.RECORDSIZE)
        flush(stream)
    rename_durably(temporary, context.dest / file)
    _record(context, file, [0, *ends[:-1]], [part_findings(path) for path in paths])


def _record(context: WriterContext, file: str, starts: list[int], parts: list[dict[str, Any]]) -> None:
    """Write the record of a finished shard, and its rows.

    Args:
        context: of the data set.
        file: name of the shard.
        starts: offset of each part in the shard.
        parts: what was found in each, see `part_findings`.
    """
    found = [
        (0, start + offset, size, label) for start, part in zip(starts, parts) for offset, size, label in part["rows"]
    ]
    rows = np.array(found, INDEX_DTYPE)
    write_durably(context.work / f"{file}.rows", rows.tobytes())
    with (context.dest / file).open("rb") as stream:
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        size = os.fstat(stream.fileno()).st_size
        spots = sampled_checksum(lambda offset, count: os.pread(stream.fileno(), count, offset), size)
    record = {
        "samples": len(rows),
        "bytes": size,
        "sha256": checksum,
        "spots_sha256": spots,
        "skipped": [skipped for part in parts for skipped in part["skipped"]],
        "odd": sum((Counter(part["odd"]) for part in parts), Counter()),
        "shrunk": sum(part["shrunk"] for part in parts),
    }
    write_durably(context.work / f"{file}.json", json.dumps(record).encode())
