"""WebDataset shards that other tools wrote: which tars there are, their splits, and the form of their labels."""

import hashlib
import json
import re
import tarfile
from dataclasses import dataclass
from pathlib import Path

from data.reading.manifest import MANIFEST
from data.reading.tar_samples import TarSample, tar_samples
from data.sources.class_map import read_class_map
from recipes.errors import UserError

_SPLIT_WORDS = {"train": 0, "training": 0, "val": 1, "valid": 1, "validation": 1, "test": 1}
_NUMBER_KEYS = ("label", "cls", "class_index", "class_id", "target")
_NAME_KEYS = ("class_name", "class", "label_name", "category", "synset", "wnid")


@dataclass(frozen=True)
class WebDatasetShards:
    """Tars that are indexed in place, without being copied.

    Attributes:
        name: of the data set.
        paths: absolute, sorted.
        splits: index into `SPLITS` of each tar, from its name; all None if no name is that of validation shards.
        class_map: a file in the form that `data.sources.class_map.read_class_map` describes.
        notes: sentences for the user.
    """

    name: str
    paths: tuple[Path, ...]
    splits: tuple[int | None, ...]
    class_map: Path | None
    notes: tuple[str, ...] = ("the shards stay where they are, and the data set refers to them",)
    kind = "WebDataset shards"

    def digest(self) -> str:
        """Return the SHA-256, in hexadecimal, of the paths and sizes of the tars and of the class map."""
        contents = [[str(path), path.stat().st_size] for path in self.paths]
        class_map = None if self.class_map is None else read_class_map(self.class_map)
        return hashlib.sha256(json.dumps([contents, self.splits, class_map]).encode()).hexdigest()


def webdataset_shards(path: Path, class_map: Path | None) -> WebDatasetShards | None:
    """Return the shards of a folder and of its ``train``, ``val``, … folders, or of a single tar.

    None if the first tar is not such a shard.

    Raises:
        UserError: only some names tell the split of a shard, or `bigbatch shard` wrote the folder.
    """
    if path.is_dir():
        folders = [
            path,
            *(folder for folder in path.iterdir() if folder.name.lower() in _SPLIT_WORDS and folder.is_dir()),
        ]
        paths = sorted(shard for folder in folders for shard in folder.glob("*.tar"))
    else:
        paths = [path] if path.name.endswith(".tar") else []
    if not paths or not _is_shard(paths[0]):
        return None
    if (path / MANIFEST).exists():
        raise UserError(f"{path} was made by `bigbatch shard` already: train from it as it is")
    splits = [_split(str(shard.relative_to(path.parent if path.is_file() else path))) for shard in paths]
    if 1 not in splits:
        splits = [None] * len(paths)
    elif None in splits:
        raise UserError(
            f"the name of {paths[splits.index(None)]} does not tell whether it is for training or validation, "
            f"while other names in {path} do: rename it, or give a folder of training shards only"
        )
    return WebDatasetShards(path.resolve().name, tuple(shard.resolve() for shard in paths), tuple(splits), class_map)


def label_text(sample: TarSample) -> str | None:
    """Return the class number or name in a sample's label members; None if they hold none.

    The first member of ``cls``, ``json`` and ``txt`` that exists is used. In JSON it is the first of `_NUMBER_KEYS`,
    which hold numbers, or else of `_NAME_KEYS`.
    """
    for ending in ("cls", "json", "txt"):
        if ending in sample.labels:
            text = sample.labels[ending].decode("utf-8", "replace")
            found = _from_json(text) if ending == "json" else text.strip()
            return found or None
    return None


def _from_json(text: str) -> str | None:
    try:
        found = json.loads(text)
    except ValueError:
        return None
    if isinstance(found, dict):
        for key in (*_NUMBER_KEYS, *_NAME_KEYS):
            if isinstance(found.get(key), (int, str)) and not isinstance(found.get(key), bool):
                return str(found[key]).strip()
        return None
    return str(found) if isinstance(found, int) else None


def _is_shard(path: Path) -> bool:
    try:
        first = next(tar_samples(path), None)
    except (tarfile.TarError, OSError):
        return False
    return first is not None and bool(first.image) and label_text(first) is not None


def _split(name: str) -> int | None:
    words = re.split(r"[^a-z]+", name.lower())
    return next((_SPLIT_WORDS[word] for word in words if word in _SPLIT_WORDS), None)
