"""The format of checkpoints, and reading them. `launcher.checkpoints.writer` describes how one is written.

A checkpoint is a folder ``step-00001234``. It holds one safetensors file per rank that wrote it, and
``checkpoint.json`` with the step, the run's identity, and the size and SHA-256 of every file. Tensors are named
``kind/parameter``, e.g. ``exp_avg/stem.0.weight``. A tensor that is sharded over ranks appears as contiguous shards of
its elements, each named ``kind/parameter@first`` after its first element. So nothing has to be gathered to be saved,
and a reader need not know how many ranks wrote the checkpoint or which rank held which elements.
"""

import hashlib
import math
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import safetensors
import torch
from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, NonNegativeInt, model_validator
from torch import Tensor

from recipes.errors import UserError
from recipes.parsing import parse_json

FORMAT = 1  # incremented when older versions cannot read what this one writes
MANIFEST = "checkpoint.json"
_START = "@"  # parameter names are Python identifiers and dots, so they never contain it


class TensorShard(NamedTuple):
    """A tensor of the training state, or a contiguous part of its elements that one process holds.

    Attributes:
        kind: "weights", "ema", "exp_avg", ...
        name: of the parameter or buffer.
        values: the whole tensor or, if `start` is given, consecutive elements of it, flat and in row-major order.
        start: the index of the first of these elements; None for a whole tensor.
    """

    kind: str
    name: str
    values: Tensor
    start: int | None = None

    @property
    def label(self) -> str:
        return f"{self.kind}/{self.name}" + ("" if self.start is None else f"{_START}{self.start}")


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk.

    Attributes:
        path: its folder.
        step: optimizer steps finished.
        scalars: the parts of the training state that are single numbers, e.g. `updates`.
        shapes: the shape of every parameter, by name.
        metadata: `identity` of the recipe, and `dataset`, the digest of the shards' contents.
        files: names of the safetensors files.
    """

    path: Path
    step: int
    scalars: dict[str, float]
    shapes: dict[str, list[int]]
    metadata: dict[str, str]
    files: tuple[str, ...]

    def reader(self) -> "CheckpointReader":
        """Return a reader of its tensors."""
        return CheckpointReader(self)


class CheckpointReader:
    """Reads tensors of a checkpoint by kind and name, however they were sharded, one at a time."""

    def __init__(self, checkpoint: Checkpoint):
        self.scalars = checkpoint.scalars
        self._path = checkpoint.path
        self._shapes = checkpoint.shapes
        # For each (kind, name): first element, open file and label of every shard.
        self._shards: dict[tuple[str, str], list[tuple[int, Any, str]]] = {}
        for part in checkpoint.files:
            file = safetensors.safe_open(checkpoint.path / part, framework="pt")
            for label in file.keys():  # noqa: SIM118  # the file is no dict, and not iterable
                kind, _, rest = label.partition("/")
                name, _, start = rest.partition(_START)
                self._shards.setdefault((kind, name), []).append((int(start or 0), file, label))
        for shards in self._shards.values():
            shards.sort(key=lambda shard: shard[0])

    @property
    def kinds(self) -> set[str]:
        """The kinds of tensors in the checkpoint."""
        return {kind for kind, _ in self._shards}

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """Return all tensors of a kind by name, each in its shape, on the CPU."""
        return {name: self.tensor(kind, name) for found, name in self._shards if found == kind}

    def tensor(self, kind: str, name: str) -> Tensor:
        """Return one tensor in its shape, on the CPU."""
        shards = self._shards[kind, name]
        if _START not in shards[0][2]:
            whole: Tensor = shards[0][1].get_tensor(shards[0][2])
            return whole
        shape = self._shapes.get(name)
        if shape is None or math.prod(shape) != sum(file.get_slice(label).get_shape()[0] for _, file, label in shards):
            raise DamagedCheckpoint(f"checkpoint {self._path} is damaged: its parts do not make up {kind}/{name}")
        return self.elements(kind, name, 0, math.prod(shape)).view(shape)

    def elements(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """Return elements `start` to `stop` of one tensor, flat, on the CPU."""
        found: list[Tensor] = []
        for first, file, label in self._shards[kind, name]:
            if _START not in label:
                whole: Tensor = file.get_tensor(label)
                return whole.flatten()[start:stop]
            shard = file.get_slice(label)
            last = first + shard.get_shape()[0]
            if first < stop and last > start:
                found.append(shard[max(start - first, 0) : min(stop, last) - first])
        return torch.cat(found) if len(found) != 1 else found[0]


def latest_valid(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint in `folder` whose files all match their checksums; None for a folder without any.

    Warns about damaged ones that are newer than the one returned.

    Raises:
        UserError: all are damaged, or a newer version of bigbatch wrote the newest one, which must not silently be
            replaced by an older one.
    """
    damaged: dict[Path, DamagedCheckpoint] = {}
    while remaining := set(folder.glob("step-*")) - damaged.keys():
        path = max(remaining)
        try:
            found = open_checkpoint(path)
        except DamagedCheckpoint as error:
            if path.exists():  # otherwise a running training has removed it meanwhile, and there is a newer one
                damaged[path] = error
            continue
        for problem in damaged.values():
            warnings.warn(f"{problem}; step {found.step} is used instead", stacklevel=2)
        return found
    if damaged:
        # Not None: training would start a new run, and replace what is left of the old one.
        count = "the only checkpoint" if len(damaged) == 1 else f"each of the {len(damaged)} checkpoints"
        raise UserError(
            f"{count} in {folder} is damaged ({damaged[max(damaged)]}): restore one from a backup, or start anew with "
            f"another --run-dir or after removing {folder.parent}"
        )
    return None


def read_latest(folder: Path) -> tuple[Checkpoint, CheckpointReader] | None:
    """Return the newest valid checkpoint with its files opened; safe beside a training that removes old checkpoints.

    Raises:
        UserError: as in `latest_valid`.
    """
    while latest := latest_valid(folder):
        try:
            return latest, latest.reader()
        except (OSError, RuntimeError):  # what safetensors raises for a missing file
            if latest.path.exists():
                raise
            # Removed since it was found, so there is a newer one. Files that are open stay readable.
    return None


def checkpoint_path(folder: Path, step: int) -> Path:
    """Return the folder of the checkpoint of that step."""
    return folder / f"step-{step:08d}"


def saved_steps(folder: Path) -> dict[int, Path]:
    """Return the checkpoints in `folder` by step, whether valid or damaged."""
    return {int(path.name.removeprefix("step-")): path for path in folder.glob("step-*")}


class DamagedCheckpoint(UserError):
    """A file of a checkpoint is missing, does not match its checksum, or lacks what every version writes."""


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in that folder after comparing every file with its checksum.

    Raises:
        DamagedCheckpoint: a file is missing or damaged.
        UserError: a newer version of bigbatch wrote it.
    """
    manifest = _read_manifest(path)
    for name, expected in manifest.files.items():
        file = path / name
        try:
            valid = file.stat().st_size == expected.bytes and sha256_of(file) == expected.sha256
        except OSError:
            valid = False
        if not valid:
            raise DamagedCheckpoint(f"checkpoint {path} is damaged: {name} is missing or has changed")
    return Checkpoint(
        path, manifest.step, manifest.numbers, manifest.shapes, manifest.about, tuple(sorted(manifest.files))
    )


def _read_manifest(path: Path) -> "_Manifest":
    """Return the manifest of the checkpoint in that folder; raises as `open_checkpoint`."""
    try:
        values = parse_json((path / MANIFEST).read_text())
        format_ = values.get("format", FORMAT)
        newer = format_ > FORMAT
        manifest = None if newer else _Manifest.model_validate(values)
    except (OSError, ValueError, AttributeError, TypeError):  # a ValidationError is a ValueError
        raise DamagedCheckpoint(f"checkpoint {path} is damaged: its {MANIFEST} cannot be read") from None
    if manifest is None:
        raise UserError(
            f"checkpoint {path} was written by a newer version of bigbatch (format {format_}, this one reads up to "
            f"{FORMAT}): update bigbatch"
        )
    return manifest


class _File(BaseModel):
    """What the manifest says about one file."""

    model_config = ConfigDict(strict=True)
    bytes: int
    sha256: str


class _Manifest(BaseModel):
    """The contents of ``checkpoint.json``. `numbers` and `about` are older than the names of `Checkpoint`."""

    model_config = ConfigDict(strict=True)
    step: NonNegativeInt
    numbers: dict[str, int | FiniteFloat]
    shapes: dict[str, list[NonNegativeInt]]
    about: dict[str, str]
    files: Annotated[dict[str, _File], Field(min_length=1)]

    @model_validator(mode="after")
    def _is_whole(self) -> "_Manifest":
        """Check that the keys are there that every version has written, and all parts, e.g. ``part-00001-of-00002``."""
        needed = {"updates", "good_steps"} if "loss_scale" in self.numbers else {"updates"}
        if not (self.numbers.keys() >= needed and self.about.keys() >= {"identity", "dataset"}):
            raise ValueError("a key is missing")
        if any(not name.endswith(f"-of-{len(self.files):05d}.safetensors") for name in self.files):
            raise ValueError("a part is missing")
        return self


def sha256_of(path: Path) -> str:
    """Return a file's SHA-256 in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
