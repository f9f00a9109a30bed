"""From a source to a data set: WebDataset shards, their indexes, and last of all the manifest.

What goes where is decided before the first byte is written, so the files are the same whatever the number of workers
and however often the work was killed.
"""

import hashlib
import json
import shutil
import tarfile
from dataclasses import asdict
from pathlib import Path

import numpy as np

from data.durable import flush, rename_durably, write_durably
from data.parallel import for_each
from data.progress import say
from data.shard_writing import Job, ShardPlan, recorded, recorded_rows, write_shard
from data.shards import FORMAT, INDEX_DTYPE, MANIFEST, ShardSet, read_manifest
from data.size_limit import SizeLimit
from data.sources import open_source
from data.sources.base import SPLITS, Listing
from data.work_folder import WORK, work_folder
from recipes.errors import UserError
from recipes.keys import key

SHARD_SIZE = 256 * 2**20


def shard(
    source: str,
    dest: Path,
    *,
    val_fraction: float = 0.1,
    shard_size: int = SHARD_SIZE,
    shortest_side: int | None = None,
    longest_side: int | None = None,
    quality: int = 95,
    class_map: Path | None = None,
    workers: int | None = None,
    progress: bool = True,
) -> ShardSet:
    """Write the images of `source` as a data set into the folder `dest`, or finish what an earlier call began.

    Images are stored as they are, in an order that mixes the classes; only those above a size limit are encoded again.
    What cannot be decoded is left out and named in the manifest.

    Args:
        source: as `data.sources.open_source` takes it.
        val_fraction: share of each class held out for validation where the source has no validation images.
        shard_size: bytes of images, as they are in the source, after which the next shard begins.
        shortest_side, longest_side: pixels above which an image is made smaller.
        quality: JPEG quality of the images made smaller.
        class_map: file that gives folders other class names or numbers, see `data.sources.class_map`.
        workers: processes; None: one per usable core.
        progress: show progress and a summary on standard error.

    Raises:
        UserError: the source is missing, damaged or of no known kind; `dest` cannot be written or holds something else.
    """
    if shard_size < 1:
        raise UserError(f"a shard size of {shard_size} bytes is not possible: give e.g. {SHARD_SIZE}")
    limit = SizeLimit(shortest_side, longest_side, quality)
    opened = open_source(source, val_fraction, class_map)
    identity = {
        "kind": opened.kind,
        "listing": opened.listing.digest(),
        "options": {"val_fraction": val_fraction, "shard_size": shard_size, "limit": asdict(limit)},
    }
    dest = Path(dest)
    try:
        if _is_finished(dest, identity):
            if progress:
                say(f"{dest} is complete: nothing to do")
            return ShardSet.open(dest)
        with work_folder(dest, identity) as work:
            manifest = _write(Job(opened, limit, dest, work), identity, shard_size, workers, progress)
    except OSError as error:
        raise UserError(
            f"{error.filename or dest}: {error.strerror or error}; the same command goes on once that is put right"
        ) from None
    if progress:
        _summarise(dest, manifest, opened.listing.notes)
    return ShardSet.open(dest)


def plan_shards(listing: Listing, shard_size: int) -> list[ShardPlan]:
    """Share out the samples: shuffled within each split, cut whenever `shard_size` bytes are reached."""
    plans = []
    for number, split in enumerate(SPLITS):
        samples = np.flatnonzero(listing.splits == number)
        keys = np.fromiter((key(0, "order in shards", i) for i in samples.tolist()), np.int64, len(samples))
        samples = samples[np.argsort(keys, kind="stable")]
        blocks = -(-listing.sizes[samples] // tarfile.BLOCKSIZE) + 3  # two headers and a label besides the image
        written_before = (np.cumsum(blocks) - blocks) * tarfile.BLOCKSIZE
        starts = np.flatnonzero(np.diff(written_before // shard_size, prepend=-1)).tolist()
        for shard_number, (start, end) in enumerate(zip(starts, [*starts[1:], len(samples)])):
            plans.append(ShardPlan(f"{split}-{shard_number:06d}.tar", split, start, samples[start:end]))
    return plans


def _is_finished(dest: Path, identity: dict) -> bool:
    if not (dest / MANIFEST).exists():
        return False
    if read_manifest(dest).get("source") != identity:
        raise UserError(f"{dest} holds a data set of another source or other options: give another folder or remove it")
    shutil.rmtree(dest / WORK, ignore_errors=True)
    return True


def _write(job: Job, identity: dict, shard_size: int, workers: int | None, progress: bool) -> dict:
    import webdataset  # noqa: F401  it imports torch: once here rather than once per worker

    plans = plan_shards(job.source.listing, shard_size)
    to_do = [plan for plan in plans if recorded(job, plan) is None]
    total = sum(len(plan.samples) for plan in to_do)
    for _ in for_each(write_shard, to_do, job, workers, f"sharding {job.source.name}", total, "images", progress):
        pass
    manifest = _manifest(job, identity, plans)
    write_durably(job.dest / MANIFEST, json.dumps(manifest, indent=1).encode())
    return manifest


def _manifest(job: Job, identity: dict, plans: list[ShardPlan]) -> dict:
    splits, skipped, odd, shrunk = {}, [], {}, 0
    for split in SPLITS:
        shards = []
        for plan in plans:
            if plan.split != split:
                continue
            record = recorded(job, plan)
            skipped += record.pop("skipped")
            shrunk += record.pop("shrunk")
            for kind, count in record.pop("odd").items():
                odd[kind] = odd.get(kind, 0) + count
            shards.append({"file": plan.file, **record})
        if shards:
            splits[split] = _split(job, split, shards, skipped)
    return {
        "format": FORMAT,
        "name": job.source.name,
        "classes": job.source.listing.classes,
        "splits": splits,
        "skipped": skipped,
        "odd": dict(sorted(odd.items())),
        "shrunk": shrunk,
        "source": identity,
    }


def _split(job: Job, split: str, shards: list[dict], skipped: list[dict]) -> dict:
    samples = sum(shard["samples"] for shard in shards)
    if samples == 0:
        example = f"{skipped[-1]['name']} ({skipped[-1]['reason']})"
        raise UserError(f"none of the {split} images of {job.source.name} can be decoded, e.g. {example}: check the source")
    index = _write_index(job, split, shards, samples)
    path = job.dest / f"{split}.index.npy"
    with path.open("rb") as stream:
        checksum = hashlib.file_digest(stream, "sha256").hexdigest()
    return {
        "samples": samples,
        "per_class": np.bincount(index["label"], minlength=len(job.source.listing.classes)).tolist(),
        "bytes": sum(shard["bytes"] for shard in shards),
        "shards": shards,
        "index": path.name,
        "index_sha256": checksum,
    }


def _write_index(job: Job, split: str, shards: list[dict], samples: int) -> np.ndarray:
    """Join the rows of a split's shards into its index and return it, memory-mapped."""
    path = job.dest / f"{split}.index.npy"
    temporary = job.work / f"{path.name}.partial"
    index = np.lib.format.open_memmap(temporary, "w+", INDEX_DTYPE, (samples,))
    start = 0
    for number, shard in enumerate(shards):
        rows = recorded_rows(job, shard["file"])
        rows["shard"] = number
        index[start : start + len(rows)] = rows
        start += len(rows)
    index.flush()
    with temporary.open("rb+") as stream:
        flush(stream)
    rename_durably(temporary, path)
    return index


def _summarise(dest: Path, manifest: dict, notes: list[str]) -> None:
    for split, record in manifest["splits"].items():
        say(
            f"{split}: {record['samples']:,} images of {len(manifest['classes'])} classes, "
            f"{record['bytes'] / 1e6:,.1f} MB, shards: {len(record['shards'])}"
        )
    if skipped := manifest["skipped"]:
        example = f"{skipped[0]['name']} ({skipped[0]['reason']})"
        say(f"left out {len(skipped):,} unreadable images, all named in {dest / MANIFEST}, e.g. {example}")
    if manifest["odd"]:
        say("odd images: " + ", ".join(f"{count:,} {kind}" for kind, count in manifest["odd"].items()))
    if manifest["shrunk"]:
        say(f"made {manifest['shrunk']:,} images smaller")
    for note in notes:
        say(note)
