"""The summary that `bigbatch shard` prints at its end: classes, splits, images left out, and unusual images."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path

from data.printable_text import printable
from data.reading.class_counts import class_notes, similar_names
from data.reading.manifest import MANIFEST, Manifest
from data.sources.webdataset_shards import WebDatasetShards

_ALL = 10  # up to this number, every class is listed
_KINDS = {"it has no label": "images without a label", "it has no image": "samples without an image"}
_ENDS = 4  # classes listed from each end of a longer list


def summary(dest: Path, manifest: Manifest, kind: str, notes: Sequence[str]) -> Iterator[str]:
    """Yield the lines of the summary of a finished data set.

    Args:
        dest: its folder.
        manifest: its manifest.
        kind: the kind of source that was recognised, e.g. "class folders".
        notes: sentences of the source about what it left out.
    """
    yield f"{dest}: {len(manifest['classes'])} classes, recognised as {kind}"
    for split, record in manifest["splits"].items():
        yield (
            f"{split}: {record['samples']:,} images of {len(manifest['classes'])} classes, "
            f"{record['bytes'] / 1e6:,.1f} MB, shards: {len(record['shards'])}"
        )
    yield f"images per class ({'+'.join(manifest['splits'])}): {', '.join(_per_class(manifest))}"
    if skipped := manifest.get("skipped"):
        reasons = Counter(_KINDS.get(entry["reason"], "unreadable images") for entry in skipped)
        for kind_of, count in reasons.items():
            example = next(e for e in skipped if _KINDS.get(e["reason"], "unreadable images") == kind_of)
            yield (
                f"left out {count:,} {kind_of}, all named in {dest / MANIFEST}, "
                f"e.g. {example['name']} ({example['reason']})"
            )
    if odd := manifest.get("odd"):
        yield "odd images: " + ", ".join(f"{count:,} {kind}" for kind, count in odd.items())
    if rotated := manifest.get("odd", {}).get("exif-rotated", 0):
        if manifest.get("source", {}).get("options", {}).get("upright"):
            yield f"turned {rotated:,} images upright, as their EXIF orientation says"
        else:
            turns = "input.upright=true" if kind == WebDatasetShards.kind else "--upright"
            yield f"{rotated:,} images have an EXIF rotation, which is ignored, as in torchvision: {turns} turns them"
    if shrunk := manifest.get("shrunk"):
        yield f"made {shrunk:,} images smaller"
    yield from notes
    per_class = {name: record["per_class"] for name, record in manifest["splits"].items()}
    yield from class_notes(manifest["classes"], per_class)
    yield from similar_names(manifest["classes"])


def _per_class(manifest: Manifest) -> list[str]:
    """Return e.g. "cat 90+10+0" for each class, or for the first and last ones, in the order of the splits."""
    splits, classes = manifest["splits"].values(), manifest["classes"]
    found = []
    for number, name in enumerate(classes):
        counts = "+".join(f"{record['per_class'][number]:,}" for record in splits)
        found.append(f"{printable(name)} {counts}")
    return found if len(found) <= _ALL else [*found[:_ENDS], "…", *found[-_ENDS:]]
