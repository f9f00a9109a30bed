"""Writes one shard in a worker process: decodes every image, writes the tar, reads it back, and records the result."""

import hashlib
import json
import os
import tarfile
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from data.atomic_io import flush, rename_durably, write_durably
from data.images.inspection import Unreadable, inspect
from data.images.size_limit import SizeLimit
from data.names import printable
from data.parallel import Worker
from data.reading.sampled_checksum import sampled_checksum
from data.reading.shards import INDEX_DTYPE
from data.reading.tar_samples import tar_samples
from data.sources.base import Source

if TYPE_CHECKING:
    from webdataset import TarWriter

_NAME_BYTES = 80  # of an image's name: a tar header holds 100, and number and extension need some of them


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: its file name, its split, the position of its first sample in the split, and its samples."""

    file: str
    split: str
    first: int
    samples: NDArray[np.int64]


@dataclass(frozen=True)
class WriterContext:
    """The settings that all workers share.

    Attributes:
        source: of the images.
        limit: for their size.
        dest: folder of the shards.
        work: folder of the records of finished shards.
        upright: whether images are turned as their EXIF orientation says.
    """

    source: Source
    limit: SizeLimit
    dest: Path
    work: Path
    upright: bool = False


def write_shard(worker: Worker, plan: ShardPlan) -> None:
    """Write one shard, and then the record that it is finished."""
    from webdataset import TarWriter

    context: WriterContext = worker.shared
    temporary = context.work / f"{plan.file}.{os.getpid()}.partial"
    try:
        with temporary.open("wb") as stream:
            # A fixed time makes equal shards equal files. Without an encoder the image's bytes are stored unchanged.
            with TarWriter(stream, encoder=False, mtime=0) as writer:
                # TarWriter leaves tarfile's default format, which stores a name beyond ASCII in a second header.
                writer.tarstream.format, writer.tarstream.encoding = tarfile.USTAR_FORMAT, "utf-8"
                found = _write_samples(worker, plan, writer)
            flush(stream)
        rename_durably(temporary, context.dest / plan.file)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk, an unfinished file only takes space
        raise
    _record(context, plan, found)


def _write_samples(worker: Worker, plan: ShardPlan, writer: "TarWriter") -> dict[str, Any]:
    """Write the samples of a shard; return the images left out and the counts of odd and shrunk ones for its record."""
    source, limit = worker.shared.source, worker.shared.limit
    skipped: list[dict[str, str]] = []
    odd: Counter[str] = Counter()
    shrunk = 0
    for place, sample in enumerate(plan.samples.tolist(), plan.first):
        name = source.listing.names[sample]
        try:
            image = inspect(_read(source, sample, name), limit, worker.shared.upright)
        except Unreadable as damage:
            skipped.append({"name": printable(name), "reason": damage.reason})
            odd.update(damage.odd)
        else:
            odd.update(image.odd)
            shrunk += image.shrunk
            label = str(source.listing.labels[sample]).encode()
            writer.write({"__key__": sample_key(place, name), image.extension: image.data, "cls": label})
        worker.advance()
    return {"skipped": skipped, "odd": odd, "shrunk": shrunk}


def sample_key(place: int, name: str) -> str:
    """Return a sample's WebDataset key: its position in the split, and the image's name without dots."""
    stem = os.path.splitext(name)[0]  # noqa: PTH122  pathlib treats names such as "a..jpg" differently
    plain = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in printable(stem))
    return f"{place:08d}-" + plain.encode()[-_NAME_BYTES:].decode(errors="ignore")


def read_rows(path: Path) -> NDArray[np.void]:
    """Read a shard back and return its rows, dtype `INDEX_DTYPE`, in the order of the tar. Their shard number is 0."""
    rows = [(0, sample.offset, sample.size, int(sample.labels["cls"])) for sample in tar_samples(path)]
    return np.array(rows, INDEX_DTYPE)


def recorded(context: WriterContext, plan: ShardPlan) -> dict[str, Any] | None:
    """Return the record of a finished shard: counts, bytes, checksums, images left out; None if it is not finished."""
    record = context.work / f"{plan.file}.json"
    if not record.exists():
        return None
    path = context.dest / plan.file
    values: dict[str, Any] = json.loads(record.read_text())
    return values if path.exists() and path.stat().st_size == values["bytes"] else None


def recorded_rows(context: WriterContext, file: str) -> NDArray[np.void]:
    """Return the rows of a finished shard, as `read_rows` returned them."""
    return np.fromfile(context.work / f"{file}.rows", INDEX_DTYPE)


def _read(source: Source, sample: int, name: str) -> bytes:
    try:
        return source.read(sample)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), f"{name} of {source.name}") from None


def _record(context: WriterContext, plan: ShardPlan, found: dict[str, Any]) -> None:
    path = context.dest / plan.file
    rows = read_rows(path)
    write_durably(context.work / f"{plan.file}.rows", rows.tobytes())
    with path.open("rb") as stream:
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
        size = path.stat().st_size
        spots = sampled_checksum(lambda offset, count: os.pread(stream.fileno(), count, offset), size)
    record = {"samples": len(rows), "bytes": size, "sha256": checksum, "spots_sha256": spots, **found}
    write_durably(context.work / f"{plan.file}.json", json.dumps(record).encode())
