"""Writing one shard in a worker process: decode every image, write the tar, read it back, record it as finished."""

import hashlib
import json
import os
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from data.atomic_io import flush, rename_durably, write_durably
from data.images.inspection import Unreadable, inspect
from data.images.size_limit import SizeLimit
from data.parallel import Worker
from data.reading.sampled_checksum import sampled_checksum
from data.reading.shards import INDEX_DTYPE
from data.reading.tar_samples import tar_samples
from data.sources.base import Source

_NAME_BYTES = 80  # of a photograph's name; the name in a tar header has 100 with number and extension


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: its file name, its split, the place of its first sample in the split, and its samples."""

    file: str
    split: str
    first: int
    samples: np.ndarray


@dataclass(frozen=True)
class WriterContext:
    """What all workers share: where images come from, their largest size, where shards and records of them go."""

    source: Source
    limit: SizeLimit
    dest: Path
    work: Path


def write_shard(worker: Worker, plan: ShardPlan) -> None:
    """Write one shard and, last of all, the record that it is finished."""
    from webdataset import TarWriter

    job: WriterContext = worker.shared
    temporary = job.work / f"{plan.file}.{os.getpid()}.partial"
    try:
        with temporary.open("wb") as stream:
            # A fixed time, and no encoder between the photograph's bytes and the tar.
            with TarWriter(stream, encoder=False, mtime=0) as writer:
                # It means this format but leaves tarfile's, which puts a name that is not ASCII into a second header.
                writer.tarstream.format, writer.tarstream.encoding = tarfile.USTAR_FORMAT, "utf-8"
                found = _write_samples(worker, plan, writer)
            flush(stream)
        rename_durably(temporary, job.dest / plan.file)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk, what is unfinished only takes room
        raise
    _record(job, plan, found)


def _write_samples(worker: Worker, plan: ShardPlan, writer) -> dict:
    """Write the samples of a shard; return what there is to say about them, for its record."""
    source, limit = worker.shared.source, worker.shared.limit
    skipped, odd, shrunk = [], Counter(), 0
    for place, sample in enumerate(plan.samples.tolist(), plan.first):
        name = source.listing.names[sample]
        try:
            photograph = inspect(_read(source, sample, name), limit)
        except Unreadable as damage:
            skipped.append({"name": name, "reason": damage.reason})
            odd.update(damage.odd)
        else:
            odd.update(photograph.odd)
            shrunk += photograph.shrunk
            label = str(source.listing.labels[sample]).encode()
            writer.write({"__key__": sample_key(place, name), photograph.extension: photograph.data, "cls": label})
        worker.advance()
    return {"skipped": skipped, "odd": odd, "shrunk": shrunk}


def sample_key(place: int, name: str) -> str:
    """Return a sample's WebDataset key: its place in the split, and its photograph's name without dots."""
    stem = os.path.splitext(name)[0]
    plain = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in stem)
    return f"{place:08d}-" + plain.encode()[-_NAME_BYTES:].decode(errors="ignore")


def read_rows(path: Path) -> np.ndarray:
    """Read a shard back and return its rows, dtype `INDEX_DTYPE`, in the order of the tar; shard numbers are left 0."""
    rows = [(0, sample.offset, sample.size, int(sample.labels["cls"])) for sample in tar_samples(path)]
    return np.array(rows, INDEX_DTYPE)


def recorded(job: WriterContext, plan: ShardPlan) -> dict | None:
    """Return the record of a finished shard: counts, bytes, checksum, skipped images; None where it is not made yet."""
    record = job.work / f"{plan.file}.json"
    if not record.exists():
        return None
    values, path = json.loads(record.read_text()), job.dest / plan.file
    return values if path.exists() and path.stat().st_size == values["bytes"] else None


def recorded_rows(job: WriterContext, file: str) -> np.ndarray:
    """Return the rows of a finished shard, as `read_rows` did."""
    return np.fromfile(job.work / f"{file}.rows", INDEX_DTYPE)


def _read(source: Source, sample: int, name: str) -> bytes:
    try:
        return source.read(sample)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), f"{name} of {source.name}") from None


def _record(job: WriterContext, plan: ShardPlan, found: dict) -> None:
    path = job.dest / plan.file
    rows = read_rows(path)
    write_durably(job.work / f"{plan.file}.rows", rows.tobytes())
    with path.open("rb") as stream:
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        size = path.stat().st_size
        spots = sampled_checksum(lambda offset, count: os.pread(stream.fileno(), count, offset), size)
    record = {"samples": len(rows), "bytes": size, "sha256": checksum, "spots_sha256": spots, **found}
    write_durably(job.work / f"{plan.file}.json", json.dumps(record).encode())
