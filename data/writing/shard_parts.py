"""Checks images and writes them as parts of shards, which are the units of work of the worker processes.

A part is smaller than a shard, so that several processes work on one shard. It holds whole members of the tar and is
written in webdataset's form: the bytes of a shard are those of `webdataset.TarWriter`.
"""

import json
import os
import tarfile
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from data.images.inspection import CheckedImage, Unreadable, inspect
from data.images.pillow_warnings import named_warnings
from data.images.size_limit import SizeLimit
from data.parallel import Worker
from data.printable_text import printable
from data.sources.base import Source

_PART_SIZE = 8 * 2**20  # bytes of images; small enough to keep 32 processes busy with one shard of the default size
_SIZE, _CHECKSUM = slice(124, 136), slice(148, 156)  # where a tar header holds them, as octal digits
_NAME_BYTES = 80  # of an image's name: a tar header holds 100, and number and extension need some of them


@dataclass(frozen=True)
class ShardPlan:
    """One shard to write: its file name, its split, the position of its first sample in the split, and its samples."""

    file: str
    split: str
    first: int
    samples: NDArray[np.int64]


@dataclass(frozen=True)
class ShardPart:
    """Consecutive samples of a shard, which one process writes.

    Attributes:
        file: name of the shard.
        number: of this part in the shard.
        count: number of parts of the shard.
        first: position of the part's first sample in the split.
        samples: rows of the source's listing.
    """

    file: str
    number: int
    count: int
    first: int
    samples: NDArray[np.int64]


@dataclass(frozen=True)
class WriterContext:
    """The settings that all workers share.

    Attributes:
        source: of the images.
        limit: for their size.
        dest: folder of the shards.
        work: folder of unfinished parts, and of the records of finished shards.
        upright: whether images are turned as their EXIF orientation says.
    """

    source: Source
    limit: SizeLimit
    dest: Path
    work: Path
    upright: bool = False


def parts_of(plan: ShardPlan, sizes: NDArray[np.int64]) -> Iterator[ShardPart]:
    """Yield the parts of a shard; `sizes` are the bytes of all images of the source."""
    own = sizes[plan.samples]
    starts = np.flatnonzero(np.diff((np.cumsum(own) - own) // _PART_SIZE, prepend=-1)).tolist()
    for number, (start, end) in enumerate(zip(starts, [*starts[1:], len(own)])):
        yield ShardPart(plan.file, number, len(starts), plan.first + start, plan.samples[start:end])


def part_path(work: Path, file: str, number: int) -> Path:
    """Return the path of a finished part. Like all unfinished work it ends with "partial", and a restart removes it."""
    return work / f"{file}.part{number:04d}.partial"


def write_part(worker: Worker, part: ShardPart) -> None:
    """Write the members of one part as a file, and beside it what was found, as JSON (`part_findings`)."""
    path = part_path(worker.shared.work, part.file, part.number)
    temporary = path.with_suffix(f".{os.getpid()}.partial")
    try:
        with temporary.open("wb") as stream:
            findings = _write_samples(worker, part, stream)
        _findings_path(path).write_text(json.dumps(findings))
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)  # on a full disk, an unfinished file only takes space
        raise


def part_findings(path: Path) -> dict[str, Any]:
    """Return what was found in a finished part, and remove the file that said so.

    Returns:
        "rows": offset in the part, size and label of each image; "skipped": the images left out, with reasons; "odd":
        counts of unusual images by kind; "shrunk": number of images made smaller.
    """
    findings: dict[str, Any] = json.loads(_findings_path(path).read_text())
    _findings_path(path).unlink()
    return findings


def sample_key(place: int, name: str) -> str:
    """Return a sample's WebDataset key: its position in the split, and the image's name without dots."""
    stem = os.path.splitext(name)[0]  # noqa: PTH122  pathlib treats names such as "a..jpg" differently
    plain = "".join(letter if letter.isalnum() or letter in "-_" else "_" for letter in printable(stem))
    return f"{place:08d}-" + plain.encode()[-_NAME_BYTES:].decode(errors="ignore")


def _findings_path(part: Path) -> Path:
    return part.with_suffix(".json.partial")


def _write_samples(worker: Worker, part: ShardPart, stream: IO[bytes]) -> dict[str, Any]:
    context: WriterContext = worker.shared
    listing = context.source.listing
    rows: list[tuple[int, int, int]] = []
    skipped: list[dict[str, str]] = []
    odd: Counter[str] = Counter()
    shrunk = 0
    for place, sample in enumerate(part.samples.tolist(), part.first):
        name = listing.names[sample]
        try:
            data = _read(context.source, sample, name)
            with named_warnings(partial(printable, name)):
                image = inspect(data, context.limit, context.upright)
        except Unreadable as damage:
            skipped.append({"name": printable(name), "reason": damage.reason})
            odd.update(damage.odd)
        else:
            odd.update(image.odd)
            shrunk += image.shrunk
            label = int(listing.labels[sample])
            rows.append((_write_sample(stream, sample_key(place, name), image, label), len(image.data), label))
        worker.advance()
    return {"rows": rows, "skipped": skipped, "odd": odd, "shrunk": shrunk}


def _write_sample(stream: IO[bytes], key: str, image: CheckedImage, label: int) -> int:
    """Write image and label as two members of a tar, in the order of their endings; return the image's offset."""
    offset, end, blocks = 0, stream.tell(), []
    for ending, data in sorted(((image.extension, image.data), ("cls", str(label).encode()))):
        if ending == image.extension:
            offset = end + tarfile.BLOCKSIZE
        member = [_header(f"{key}.{ending}", len(data)), data, bytes(-len(data) % tarfile.BLOCKSIZE)]
        end += sum(map(len, member))
        blocks += member
    stream.writelines(blocks)
    return offset


def _header(name: str, size: int) -> bytes:
    """Return the header that `tarfile` makes, in a quarter of its time: only name, size and checksum differ."""
    assert size < 8**11, "a size has eleven octal digits"
    header, encoded = bytearray(_common_header()), name.encode()
    header[: len(encoded)] = encoded
    header[_SIZE] = b"%011o\0" % size
    header[_CHECKSUM] = b" " * 8
    header[_CHECKSUM] = b"%06o\0 " % sum(header)
    return bytes(header)


@cache
def _common_header() -> bytes:
    member = tarfile.TarInfo()
    member.mode = 0o444
    member.uname = member.gname = "bigdata"  # as webdataset writes them
    return member.tobuf(tarfile.USTAR_FORMAT, "utf-8")


def _read(source: Source, sample: int, name: str) -> bytes:
    try:
        return source.read(sample)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), f"{name} of {source.name}") from None
