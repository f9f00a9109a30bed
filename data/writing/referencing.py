"""Makes a data set of WebDataset shards that other tools wrote: an index and a manifest that refer to the tars."""

import hashlib
import json
import os
import shutil
import tarfile
from collections import Counter
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from data.atomic_io import flush, rename_durably, write_durably
from data.images.inspection import Unreadable, inspect
from data.images.pillow_warnings import named_warnings
from data.parallel import Worker, for_each
from data.printable_text import composed, one_line, printable
from data.reading.manifest import ShardRecord
from data.reading.sampled_checksum import sampled_checksum
from data.reading.shards import INDEX_DTYPE
from data.reading.tar_samples import IMAGE_ENDINGS, tar_samples
from data.sources.archives import DECOMPRESSION_ERRORS, decompress
from data.sources.base import Names, require_classes
from data.sources.class_map import read_class_map, renumber
from data.sources.class_trees import class_numbers
from data.sources.open_files import without_ending
from data.sources.splits import SPLITS, TRAIN, with_validation
from data.sources.webdataset_shards import WebDatasetShards, is_compressed, label_text
from data.writing.label_members import LabelMembers, label_notes
from data.writing.split_writing import write_split
from recipes.errors import UserError

_HIGHEST_NUMBER = 10_000_000  # of a class; a higher label is something else, e.g. a hash


def reference(
    shards: WebDatasetShards, dest: Path, work: Path, val_fraction: float, workers: int | None, progress: bool
) -> tuple[dict[str, Any], list[str]]:
    """Index the shards, decoding every image once, and return the contents of the manifest and notes for the user.

    The key `labels` of the contents maps the class names or numbers that the shards use to class numbers.

    Raises:
        UserError: a shard is damaged, or the labels are not those of a classification.
    """
    to_do = [number for number in range(len(shards.paths)) if not (work / f"{number}.json").exists()]
    what = f"indexing {shards.name}"
    for _ in for_each(_index_shard, to_do, (shards, dest, work), workers, what, len(to_do), "shards", progress):
        pass
    records = [json.loads((work / f"{number}.json").read_text()) for number in range(len(shards.paths))]
    try:
        number_of, classes, merged = _classes(shards, records)
        _refuse_lost_class(shards, records)
    except UserError:
        _forget(shards, dest, work)
        raise
    rows = [_rows(work, number, record, number_of) for number, record in enumerate(records)]
    splits_of, notes = _splits(shards, records, rows, val_fraction)
    notes += [*merged, *label_notes(records), *_unused(records, rows)]
    splits = {}
    for split, name in enumerate(SPLITS):
        listed: list[ShardRecord] = []
        chosen: list[NDArray[np.void]] = []
        for number, (record, of_shard, split_of) in enumerate(zip(records, rows, splits_of)):
            inside = of_shard[(split_of == split) & (of_shard["label"] >= 0)]
            if len(inside):
                listed.append(
                    ShardRecord(
                        file=_file(shards.paths, number),
                        samples=len(inside),
                        bytes=record["bytes"],
                        sha256=record["sha256"],
                        spots_sha256=record["spots_sha256"],
                    )
                )
                chosen.append(inside)
        if listed:
            splits[name] = write_split(dest, work, name, listed, chosen, len(classes))
    odd: Counter[str] = Counter()
    for record in records:
        odd.update(record["odd"])
    contents = {
        "classes": classes,
        "splits": splits,
        "skipped": [skipped for record in records for skipped in record["skipped"]],
        "odd": dict(sorted(odd.items())),
        "labels": number_of,
    }
    return contents, notes


def _index_shard(worker: Worker, number: int) -> None:
    """Record the images of one shard: where they lie, and as label the position of the label's text in "labels"."""
    shards, dest, work = worker.shared
    path = shards.paths[number]
    plain_name = f"{without_ending(path.name)}.tar"  # so that the held out images do not depend on compression
    if is_compressed(path):
        path = _unpacked(path, dest / _file(shards.paths, number), work / f"{number}.{os.getpid()}.partial")
    rows: list[tuple[int, int, int, int]] = []
    names: list[str] = []
    labels: dict[str, int] = {}
    skipped: list[dict[str, str]] = []
    unreadable: dict[str, str] = {}  # an example of each label
    odd: Counter[str] = Counter()
    unused: Counter[str] = Counter()
    members = LabelMembers()
    try:
        with path.open("rb") as stream:
            for sample in tar_samples(path):
                worker.advance(0)
                unused.update(sample.unused)
                name = printable(f"{sample.image or sample.key} in {plain_name}")
                text = label_text(sample)
                stream.seek(sample.offset)
                try:
                    if not sample.image:
                        raise Unreadable("it has no image")
                    if text is None:
                        raise Unreadable("it has no label")
                    with named_warnings(partial(str, name)):
                        odd.update(inspect(stream.read(sample.size)).odd)
                except Unreadable as damage:
                    odd.update(damage.odd)
                    skipped.append({"name": name, "reason": damage.reason})
                    if sample.image and text is not None:
                        unreadable.setdefault(text, f"{name} ({damage.reason})")
                else:
                    rows.append((0, sample.offset, sample.size, labels.setdefault(text, len(labels))))
                    names.append(name)
                    members.add(sample, name)
            stream.seek(0)
            checksum = hashlib.file_digest(stream, "sha256").hexdigest()
            size = path.stat().st_size
            spots = sampled_checksum(lambda offset, count: os.pread(stream.fileno(), count, offset), size)
    except (tarfile.TarError, EOFError) as error:
        raise UserError(one_line(f"{path} is not a whole tar ({error}): download it again")) from None
    write_durably(work / f"{number}.rows", np.array(rows, INDEX_DTYPE).tobytes())
    record = {"bytes": size, "sha256": checksum, "spots_sha256": spots, "labels": list(labels), "names": names}
    record |= {"skipped": skipped, "unreadable": unreadable, "odd": odd, "unused": unused + members.unused}
    write_durably(work / f"{number}.json", json.dumps(record | members.record()).encode())
    worker.advance()


def _forget(shards: WebDatasetShards, dest: Path, work: Path) -> None:
    """Remove what was written: the next command may have a class map, and its work would be taken for another's."""
    for number, path in enumerate(shards.paths):
        if is_compressed(path):
            (dest / _file(shards.paths, number)).unlink(missing_ok=True)
    shutil.rmtree(work, ignore_errors=True)


def _file(paths: Sequence[Path], number: int) -> str:
    """Return the name of a shard in the manifest: its path, or the file in the data set to which it is unpacked."""
    path = paths[number]
    return f"{number:06d}-{without_ending(path.name)}.tar" if is_compressed(path) else str(path)


def _unpacked(path: Path, unpacked: Path, temporary: Path) -> Path:
    try:
        with temporary.open("wb") as stream:
            decompress(path, stream)
            flush(stream)
    except DECOMPRESSION_ERRORS as error:
        if isinstance(error, OSError) and error.errno is not None:  # such as a full disk; damage has no number
            raise
        raise UserError(one_line(f"{path} cannot be unpacked ({error}): download it again")) from None
    rename_durably(temporary, unpacked)
    return unpacked


def _refuse_lost_class(shards: WebDatasetShards, records: list[dict[str, Any]]) -> None:
    """Raise a `UserError` if none of the images of a class can be decoded, unless a class map leaves it out."""
    found = {composed(text) for record in records for text in record["labels"]}
    chosen = {composed(text) for text in read_class_map(shards.class_map)} if shards.class_map else None
    for text, example in (
        (text, example) for record in records for text, example in record.get("unreadable", {}).items()
    ):
        if composed(text) not in found and (chosen is None or composed(text) in chosen):
            raise UserError(
                f"the class {printable(text)} of {shards.name} would be without images, because none can be decoded, "
                f"e.g. {example}: mend them, or choose the other classes with --class-map"
            )


def _classes(shards: WebDatasetShards, records: list[dict[str, Any]]) -> tuple[dict[str, int], list[str], list[str]]:
    """Return the class number of each label text that is kept, the names of the classes, and notes for the user."""
    notes: list[str] = []
    texts = {text for record in records for text in record["labels"]}
    samples = sum(len(record["names"]) for record in records)
    if shards.class_map is None:
        _refuse_mixed_labels(shards.name, [record["labels"] for record in records if record["labels"]])
    if all(text.isdecimal() for text in texts):
        # Python refuses to read numbers of several thousand digits.
        highest = max((int(text) if len(text) < 100 else _HIGHEST_NUMBER + 1 for text in texts), default=-1)
        if highest > _HIGHEST_NUMBER:
            raise UserError(f"{shards.name} has a label {highest}, which is no class number: give a class map")
        classes = [str(number) for number in range(highest + 1)]
        number_of = {text: int(text) for text in sorted(texts)}
    elif len(texts) > max(2, samples // 2):
        example = min(texts)
        raise UserError(
            f"the labels of {shards.name} are different for nearly every image, e.g. {example!r}: no classes"
        )
    else:
        numbers, classes, notes = class_numbers(sorted(texts))
        number_of = dict(zip(sorted(texts), numbers.tolist()))
    if shards.class_map is not None:
        number_of, classes = renumber(
            sorted(texts, key=number_of.__getitem__), read_class_map(shards.class_map), shards.class_map
        )
    require_classes(classes, shards.name)
    return number_of, classes, notes


def _refuse_mixed_labels(name: str, labels: Sequence[Sequence[str]]) -> None:
    """Raise a `UserError` if the labels of the shards are of two kinds, or if some are negative numbers.

    Args:
        name: of the data set.
        labels: the labels of each shard.
    """
    numbers = [of_shard for of_shard in labels if all(text.isdecimal() for text in of_shard)]
    names = [of_shard for of_shard in labels if not any(text.isdecimal() for text in of_shard)]
    if numbers and names:
        raise UserError(
            f"some shards of {name} have numbers as labels, e.g. {numbers[0][0]}, and some have names, e.g. "
            f"{names[0][0]!r}: name the class of each with --class-map"
        )
    texts = [text for of_shard in labels for text in of_shard]
    negative = [text for text in texts if text.startswith("-") and text[1:].isdecimal()]
    if negative and all(text.removeprefix("-").isdecimal() for text in texts):
        raise UserError(
            f"{name} has the label {negative[0]}, which mostly means that an image has no label: name the classes that "
            f"are meant with --class-map, which leaves out the others"
        )


def _rows(work: Path, number: int, record: dict[str, Any], number_of: dict[str, int]) -> NDArray[np.void]:
    rows = np.fromfile(work / f"{number}.rows", INDEX_DTYPE)
    numbers = np.array([number_of.get(text, -1) for text in record["labels"]], np.int32)
    rows["label"] = numbers[rows["label"]]
    return rows


def _splits(
    shards: WebDatasetShards, records: list[dict[str, Any]], rows: list[NDArray[np.void]], val_fraction: float
) -> tuple[list[NDArray[np.uint8]], list[str]]:
    """Return the split of each row of each shard, and notes for the user."""
    names = Names(name for record in records for name in record["names"])
    labels = np.concatenate([of_shard["label"] for of_shard in rows])
    of_shards = [TRAIN if split is None else split for split in shards.splits]
    splits = np.repeat(np.array(of_shards, np.uint8), [len(of_shard) for of_shard in rows])
    kept = np.flatnonzero(labels >= 0)
    splits[kept], notes = with_validation(splits[kept], [names[i] for i in kept.tolist()], labels[kept], val_fraction)
    return np.split(splits, np.cumsum([len(of_shard) for of_shard in rows])[:-1]), notes


def _unused(records: list[dict[str, Any]], rows: list[NDArray[np.void]]) -> list[str]:
    """Return sentences that count the members of samples, and the images, that are not used."""
    notes = []
    endings: Counter[str] = Counter()
    for record in records:
        endings.update(record.get("unused", {}))
    for ending, count in endings.most_common():
        kind = "images beside those used" if ending.rpartition(".")[2] in IMAGE_ENDINGS else "members"
        notes.append(f"left out {count:,} .{ending} {kind}")
    if unmapped := sum(int((of_shard["label"] < 0).sum()) for of_shard in rows):
        notes.append(f"left out {unmapped:,} images of classes that the class map does not name")
    return notes
