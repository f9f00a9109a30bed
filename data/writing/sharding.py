"""Makes a data set from a source: WebDataset shards, their indexes, and last the manifest.

The shard and position of every image are decided before the first byte is written. So the files depend neither on the
number of workers nor on how often the command was killed and repeated.
"""

import json
import shutil
import tarfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, cast

import numpy as np

from data.atomic_io import rename_durably, write_durably
from data.images.size_limit import SizeLimit
from data.parallel import for_each
from data.printable_text import printable
from data.progress import say
from data.reading.manifest import FORMAT, MANIFEST, Manifest, ShardRecord, SplitRecord, read_manifest
from data.reading.shards import ShardSet
from data.reading.storage import LocalFolder, is_url
from data.sources.base import Listing
from data.sources.recognition import LabelTables, open_source
from data.sources.splits import DEFAULT_FRACTION, SPLITS
from data.sources.webdataset_shards import WebDatasetShards
from data.writing.referencing import reference
from data.writing.shard_parts import ShardPlan, WriterContext, parts_of
from data.writing.shard_writing import recorded, recorded_rows, write_part_or_shard
from data.writing.split_writing import write_split
from data.writing.summary import summary
from data.writing.timm_info import TIMM_INFO, timm_info
from data.writing.work_folder import WORK, work_folder
from recipes.errors import UserError
from recipes.local_paths import as_url, has_scheme, local_path
from recipes.randomness import random_key

SHARD_SIZE = 256 * 2**20


def shard(
    source: str | Path,
    folder: str | Path,
    *,
    val_fraction: float = DEFAULT_FRACTION,
    shard_size: int = SHARD_SIZE,
    shortest_side: int | None = None,
    longest_side: int | None = None,
    quality: int = 95,
    upright: bool = False,
    class_map: Path | None = None,
    labels: LabelTables | None = None,
    modules: Sequence[str] = (),
    workers: int | None = None,
    progress: bool = True,
) -> ShardSet:
    """Write the images of `source` as a data set into a folder, or finish what an earlier call began.

    Images are stored unchanged, in an order that mixes the classes. Only those above a size limit, 16-bit grey ones,
    and those that `upright` turns are encoded again. Images that cannot be decoded are left out and named in the
    manifest.

    Args:
        source: a path or name in the form that `data.sources.recognition.open_source` describes.
        folder: of the data set; created if it is missing.
        val_fraction: fraction of each class to hold out for validation if the source has no validation images.
        shard_size: bytes of images, as stored in the source, after which the next shard begins.
        shortest_side, longest_side: limits in pixels, above which an image is made smaller.
        quality: JPEG quality of the images that are encoded again.
        upright: turn images as their EXIF orientation says, and encode these again.
        class_map: file that gives folders other class names or numbers, see `data.sources.class_map`.
        labels: tables that hold the labels of the images.
        modules: the user's modules that register sources.
        workers: processes; None: one per usable core.
        progress: show progress and a summary on standard error.

    Raises:
        UserError: the source is missing, damaged or of no known kind; the folder cannot be written or holds something
            else.
    """
    if not 1 <= shard_size < 2**63:
        raise UserError(f"a shard size of {shard_size} bytes is not valid: give e.g. {SHARD_SIZE}")
    limit = SizeLimit(shortest_side, longest_side, quality)
    if has_scheme(folder):
        raise UserError(
            f"shards are written to a local folder, not to {as_url(folder)}: write them to a disk, then upload them"
        )
    # Text may be the NAME:LOCATION of a source that the user registered, with a location that begins with a slash.
    if is_url(source) or (isinstance(source, Path) and has_scheme(source)):
        raise UserError(f"a source has to be on a local disk, and {as_url(source)} is a URL: download it first")
    source, dest = str(source), local_path(folder)
    class_map = None if class_map is None else local_path(class_map)
    labels = None if labels is None else replace(labels, tables=tuple(map(local_path, labels.tables)))
    try:
        opened = open_source(source, val_fraction, class_map, workers, progress, labels, modules)
        if isinstance(opened, WebDatasetShards):
            _require_no_changes(opened, limit, upright)
        options: dict[str, Any] = {"val_fraction": val_fraction, "shard_size": shard_size, "limit": asdict(limit)}
        if upright:  # only then, so that data sets of before this option are still known as complete
            options["upright"] = True
        identity = {"kind": opened.kind, "listing": opened.digest(), "options": options}
        if _is_finished(dest, identity):
            shutil.rmtree(dest / WORK, ignore_errors=True)  # a killed command may have left it
            if progress:
                say(f"{dest} is complete: nothing to do")
            return ShardSet.open(dest)
        with work_folder(dest, identity) as work:
            if _is_finished(dest, identity):  # by the command whose lock this one has just waited for
                return ShardSet.open(dest)
            if isinstance(opened, WebDatasetShards):
                contents, notes = reference(opened, dest, work, val_fraction, workers, progress)
            else:
                notes = []
                contents = _write(WriterContext(opened, limit, dest, work, upright), shard_size, workers, progress)
                write_durably(work / TIMM_INFO, json.dumps(timm_info(contents["splits"]), indent=1).encode())
                rename_durably(work / TIMM_INFO, dest / TIMM_INFO)
            manifest = cast(Manifest, {"format": FORMAT, "name": opened.name, **contents, "source": identity})
            write_durably(work / MANIFEST, json.dumps(manifest, indent=1).encode())
            rename_durably(work / MANIFEST, dest / MANIFEST)  # so that a kill leaves no half manifest in `dest`
    except OSError as error:
        raise UserError(
            f"{error.filename or dest}: {error.strerror or error}; the same command resumes once that is solved"
        ) from None
    if progress:
        for line in summary(dest, manifest, opened.kind, [*opened.notes, *notes]):
            say(line)
    return ShardSet.open(dest)


def plan_shards(listing: Listing, shard_size: int) -> list[ShardPlan]:
    """Divide the samples among shards: shuffled within each split, cut whenever `shard_size` bytes are reached."""
    plans = []
    for number, split in enumerate(SPLITS):
        samples = np.flatnonzero(listing.splits == number)
        keys = np.fromiter((random_key(0, "order in shards", i) for i in samples.tolist()), np.int64, len(samples))
        samples = samples[np.argsort(keys, kind="stable")]
        blocks = -(-listing.sizes[samples] // tarfile.BLOCKSIZE) + 3  # the image, its header, its label and the label's
        written_before = (np.cumsum(blocks) - blocks) * tarfile.BLOCKSIZE
        starts = np.flatnonzero(np.diff(written_before // shard_size, prepend=-1)).tolist()
        for shard_number, (start, end) in enumerate(zip(starts, [*starts[1:], len(samples)])):
            plans.append(ShardPlan(f"{split}-{shard_number:06d}.tar", split, start, samples[start:end]))
    return plans


def _is_finished(dest: Path, identity: dict[str, Any]) -> bool:
    if not (dest / MANIFEST).exists():
        return False
    if read_manifest(LocalFolder(dest)).get("source") != identity:
        raise UserError(f"{dest} holds a data set of another source or other options: give another folder or remove it")
    return True


def _require_no_changes(shards: WebDatasetShards, limit: SizeLimit, upright: bool) -> None:
    """Check that no image of these shards has to be changed: they are indexed where they are.

    Raises:
        UserError: an option asks for changes.
    """
    if limit.shortest_side or limit.longest_side or upright:
        raise UserError(
            f"{shards.name} is WebDataset shards, which are not rewritten: leave out size limits and --upright; "
            f"to train on upright images, set input.upright=true"
        )


def _write(context: WriterContext, shard_size: int, workers: int | None, progress: bool) -> dict[str, Any]:
    plans = plan_shards(context.source.listing, shard_size)
    to_do = [plan for plan in plans if recorded(context, plan.file) is None]
    if to_do:
        context.source.prepare()
    parts = [part for plan in to_do for part in parts_of(plan, context.source.listing.sizes)]
    total, what = sum(len(plan.samples) for plan in to_do), f"sharding {context.source.name}"
    for _ in for_each(write_part_or_shard, parts, context, workers, what, total, "images", progress):
        pass
    shards: dict[str, list[ShardRecord]] = {}
    skipped: list[dict[str, str]] = []
    last_skipped: dict[str, dict[str, str]] = {}  # by split
    odd: Counter[str] = Counter()
    shrunk = 0
    for plan in plans:
        record = recorded(context, plan.file)
        assert record is not None, "every shard was written above"
        if record["skipped"]:
            last_skipped[plan.split] = record["skipped"][-1]
        skipped += record.pop("skipped")
        odd.update(record.pop("odd"))
        shrunk += record.pop("shrunk")
        shards.setdefault(plan.split, []).append(cast(ShardRecord, {"file": plan.file, **record}))
    for split, of_split in shards.items():
        if not any(shard["samples"] for shard in of_split):
            _forget(context, plans)
            raise UserError(
                f"none of the {split} images of {context.source.name} can be decoded, e.g. "
                "{name} ({reason}): check the source".format(**last_skipped[split])
            )
    if lost := _lost_class(context, plans, skipped):
        _forget(context, plans)
        raise UserError(lost)
    splits: dict[str, SplitRecord] = {}
    for split, of_split in shards.items():
        rows = (recorded_rows(context, shard["file"]) for shard in of_split)
        splits[split] = write_split(
            context.dest, context.work, split, of_split, rows, len(context.source.listing.classes)
        )
    return {
        "classes": context.source.listing.classes,
        "splits": splits,
        "skipped": skipped,
        "odd": dict(sorted(odd.items())),
        "shrunk": shrunk,
    }


def _lost_class(context: WriterContext, plans: list[ShardPlan], skipped: list[dict[str, str]]) -> str | None:
    """Return a sentence about the first class that has images, none of which can be decoded; None without one."""
    listing = context.source.listing
    written = np.zeros(len(listing.classes), np.int64)
    for plan in plans:
        written += np.bincount(recorded_rows(context, plan.file)["label"], minlength=len(written))
    lost = np.flatnonzero((written == 0) & (np.bincount(listing.labels, minlength=len(written)) > 0))
    if not len(lost):
        return None
    images = {printable(listing.names[row]) for row in np.flatnonzero(listing.labels == lost[0]).tolist()}
    example = next(entry for entry in skipped if entry["name"] in images)
    return (
        f"the class {printable(listing.classes[lost[0]])} would be without images, because none of its "
        f"{len(images):,} can be decoded, e.g. {example['name']} ({example['reason']}): mend them, or choose the other "
        f"classes with --class-map"
    )


def _forget(context: WriterContext, plans: list[ShardPlan]) -> None:
    """Remove what was written: the next command has a mended source, and this work would be taken for another's."""
    for plan in plans:
        (context.dest / plan.file).unlink(missing_ok=True)
    shutil.rmtree(context.work, ignore_errors=True)
