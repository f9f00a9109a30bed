"""WebDataset shards that other tools wrote: finds the tars and their splits, and reads the labels of their samples."""

import glob
import hashlib
import json
import os
import tarfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from data.printable_text import printable
from data.reading.manifest import MANIFEST
from data.reading.tar_samples import LABEL_ENDINGS, TarSample, tar_samples
from data.sources.archives import COMPRESSED, DECOMPRESSION_ERRORS, archive_kind, open_tar
from data.sources.class_map import read_class_map
from data.sources.open_files import TAR_ENDINGS
from data.sources.splits import TEST, VAL, split_of_name
from recipes.errors import UserError
from recipes.parsing import parse_json

_NUMBER_KEYS = ("label", "cls", "class_index", "class_id", "target")
_LOOKED_AT = 16  # samples of a tar that are checked to decide whether it is such a shard
_NAME_KEYS = ("class_name", "class", "label_name", "category", "synset", "wnid")


@dataclass(frozen=True)
class WebDatasetShards:
    """Tars that are indexed in place, without being copied. Compressed ones are unpacked first.

    Attributes:
        name: of the data set.
        paths: absolute, sorted.
        splits: index into `SPLITS` of each tar, from its name; all None if no name contains a validation or test split.
        class_map: a file in the form that `data.sources.class_map.read_class_map` describes.
        notes: sentences for the user.
    """

    name: str
    paths: tuple[Path, ...]
    splits: tuple[int | None, ...]
    class_map: Path | None
    notes: tuple[str, ...]
    kind = "WebDataset shards"

    def digest(self) -> str:
        """Return the SHA-256, in hexadecimal, of the paths and sizes of the tars and of the class map."""
        contents = [[str(path), path.stat().st_size] for path in self.paths]
        class_map = None if self.class_map is None else read_class_map(self.class_map)
        return hashlib.sha256(json.dumps([contents, self.splits, class_map]).encode()).hexdigest()


def webdataset_shards(source: str, class_map: Path | None) -> WebDatasetShards | None:
    """Return the shards of a folder and of its ``train``, ``val``, … folders, of a single tar, or of a pattern.

    A pattern has wildcards or braces, e.g. ``shards/train-{000..127}.tar``. Returns None if the tars are not such
    shards.

    Raises:
        UserError: only some names contain the split of a shard, a pattern matches no file, or `bigbatch shard` wrote
            the folder.
    """
    path = Path(source).expanduser()
    top, paths = _expanded(path) if set("*?[{") & set(source) and not path.exists() else _listed(path)
    if not paths:
        return None
    samples = _first_samples(paths)
    if not any(sample.image and label_text(sample) is not None for sample in samples):
        _refuse_without_labels(samples, path)
        return None
    if (path / MANIFEST).exists():
        raise UserError(f"{path} was made by `bigbatch shard` already: train from it as it is")
    splits = [_split(str(shard.relative_to(top))) for shard in paths]
    if not {VAL, TEST} & set(splits):
        splits = [None] * len(paths)
    elif None in splits:
        raise UserError(
            f"the name of {paths[splits.index(None)]} does not say whether it is for training or validation, "
            f"while other names in {path} do: rename it, or give a folder of training shards only"
        )
    packed = sum(is_compressed(shard) for shard in paths)
    notes = ["the shards stay where they are, and the data set refers to them"] if packed < len(paths) else []
    if packed:
        notes.append(f"unpacked {packed:,} compressed shards, because no single image can be read from them")
    if path.is_dir() and (others := Counter(_other_ending(file) for file in path.iterdir() if _is_other(file))):
        listed = ", ".join(f"{count:,} {ending or 'without an ending'}" for ending, count in others.most_common())
        notes.append(f"ignored {others.total():,} files beside the shards: {listed}")
    if path.is_dir() and (unused := _unused_tars(path, set(paths))):
        example = printable(str(unused[0].relative_to(path)))
        notes.append(f"ignored {len(unused):,} tars in folders whose names say no split, e.g. {example}")
    name = (top if "{" in path.name or "*" in path.name else path).resolve().name
    return WebDatasetShards(name, tuple(shard.resolve() for shard in paths), tuple(splits), class_map, tuple(notes))


def is_tar_name(path: Path) -> bool:
    """Return whether a file has the ending of a tar, compressed or not."""
    return path.name.lower().endswith(TAR_ENDINGS)


def is_compressed(shard: Path) -> bool:
    """Return whether a shard is compressed, by its contents."""
    return archive_kind(shard) in COMPRESSED


def _listed(path: Path) -> tuple[Path, list[Path]]:
    if not path.is_dir():
        return path.parent, [path] if is_tar_name(path) and path.is_file() else []
    inner = [folder for folder in path.iterdir() if split_of_name(folder.name) is not None and folder.is_dir()]
    found = [file for folder in (path, *inner) for file in folder.iterdir()]
    return path, sorted(file for file in found if is_tar_name(file) and _is_plain(file))


def _unused_tars(folder: Path, used: set[Path]) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if is_tar_name(path) and _is_plain(path) and path not in used)


def _expanded(pattern: Path) -> tuple[Path, list[Path]]:
    from braceexpand import braceexpand

    try:
        patterns = list(braceexpand(str(pattern)))
    except ValueError:
        raise UserError(f"the braces of {pattern} are not closed: write e.g. train-{{000..127}}.tar") from None
    paths = []
    for text in patterns:
        found = glob.glob(text)  # noqa: PTH207  the pattern may be absolute, which Path.glob does not take
        if not found:
            raise UserError(f"there is no {text}: check the pattern {pattern}")
        paths += [Path(name) for name in found]
    if strange := [path for path in paths if not is_tar_name(path)]:
        raise UserError(f"the pattern {pattern} matches {strange[0]}, which is not a tar: give a pattern of shards")
    common = Path(os.path.commonpath([path.parent for path in paths]))
    return common, sorted(set(paths))


def _is_plain(file: Path) -> bool:
    return not file.name.startswith(".")


def _is_other(file: Path) -> bool:
    return _is_plain(file) and file.is_file() and not is_tar_name(file)


def _other_ending(file: Path) -> str:
    return printable(file.suffix.lower())


def label_text(sample: TarSample) -> str | None:
    """Return the class number or name in a sample's label members; None if they hold none."""
    return label_member(sample)[1]


def label_member(sample: TarSample) -> tuple[str | None, str | None]:
    """Return the ending of the member that decides the label of a sample, and its class number or name.

    The first member of ``cls``, ``json`` and ``txt`` that exists decides. In JSON it is the first of `_NUMBER_KEYS`,
    which hold numbers, or else of `_NAME_KEYS`; JSON with neither, such as that of img2dataset, is skipped.
    Both are None if no member decides. The second is None if the one that does holds no label.
    """
    for ending in LABEL_ENDINGS:
        if ending in sample.labels and (found := labels_in(sample, ending)) is not None:
            return ending, next(iter(found), "") or None
    return None, None


def labels_in(sample: TarSample, ending: str) -> list[str] | None:
    """Return the class numbers and names in a label member, first the one that decides; None for JSON without a key."""
    text = sample.labels[ending].decode("utf-8", "replace")
    if ending != "json":
        return [text.strip()]
    try:
        found = parse_json(text)
    except ValueError:
        return []
    if isinstance(found, dict):
        values = [found.get(key) for key in (*_NUMBER_KEYS, *_NAME_KEYS)]
        # The truth values of JSON are integers in Python.
        return [str(one).strip() for one in values if isinstance(one, int | str) and not isinstance(one, bool)] or None
    return [str(found)] if isinstance(found, int) else []


def _first_samples(paths: Sequence[Path]) -> list[TarSample]:
    """Return the first samples of the first, the middle and the last tar, without those of damaged tars."""
    found: list[TarSample] = []
    for path in sorted({paths[0], paths[len(paths) // 2], paths[-1]}):
        with suppress(tarfile.TarError, *DECOMPRESSION_ERRORS):
            found += list(islice(tar_samples(path, open_tar), _LOOKED_AT))
    return found


def _refuse_without_labels(samples: Sequence[TarSample], source: Path) -> None:
    """Raise a `UserError` if samples look like WebDataset's: each tar would be read as a class of its own."""
    described = [sample for sample in samples if sample.image and (sample.labels or sample.unused)]
    if described and 2 * len(described) >= len(samples) and not any("/" in sample.key for sample in described):
        beside = sorted({ending for sample in described for ending in (*sample.labels, *sample.unused)})
        raise UserError(
            f"{source} looks like WebDataset shards without labels: beside its images are only members "
            f"{', '.join(f'.{ending}' for ending in beside)} without a class. Give a table of the labels with "
            f"--labels, or add a .cls member to each sample"
        )


def _split(name: str) -> int | None:
    """Return the split in the name of a file, or else in that of its nearest folder, as an index into `SPLITS`."""
    return next((split for part in reversed(name.split("/")) if (split := split_of_name(part)) is not None), None)
