"""Checkpoints: whole or not there.

A checkpoint is a folder ``step-00001234`` with one safetensors file per process that wrote it and ``checkpoint.json`` with
the step, what the run was, and size and SHA-256 of every file. Tensors are named ``kind/parameter``, e.g.
``exp_avg/stem.0.weight``; of a tensor that is shared out among processes, each writes its run of elements under
``kind/parameter@first``. So nothing is gathered to be saved, and how many processes wrote it, and which part each held, does not
matter to who reads it.

Every process writes its share into a hidden folder, then a record of it (size and SHA-256). The record appears whole, after the
part is on the disk, and is the last thing its process does there: from then on the folder is the main process's alone. When
all records are there, the main process adds the JSON, which flushes all names to the disk, and renames the folder. A process
that cannot write its part leaves a mark instead, so that the main process does not wait for it. What is killed half-way
never gets the final name; what is damaged afterwards does not match its checksum, and the checkpoint before it is used. The state is copied first and written by a thread, so training goes on meanwhile; the copy
is the only stall.
"""

import contextlib
import hashlib
import json
import math
import os
import shutil
import threading
import time
import uuid
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from data.atomic_io import rename_durably, write_atomically, write_durably
from launcher.checkpoints.retention import Retention
from recipes.errors import UserError

_FORMAT = 1
_MANIFEST = "checkpoint.json"
_START = "@"  # stands in no parameter's name
_FAILED = ".failed"  # ending of the mark of a process that could not write its part
_PART_TIMEOUT = 1800  # seconds that the main process waits for another one's part


class TensorShard(NamedTuple):
    """A tensor of the state, or a run of its elements.

    `values` is the whole tensor, or flat: its elements from `start` on, counted in the tensor's row-major order.
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
    """A whole checkpoint on disk.

    `numbers` are the state's few scalars, `shapes` the parameters' shapes by name, `about` what the run was: `identity` of
    its recipe and digest of its `dataset`.
    """

    path: Path
    step: int
    numbers: dict[str, float]
    shapes: dict[str, list[int]]
    about: dict[str, str]

    def reader(self) -> "CheckpointReader":
        """Open its files."""
        return CheckpointReader(self)


class CheckpointReader:
    """The tensors of a checkpoint, by kind and name, whoever wrote them in whatever pieces; read only when asked for."""

    def __init__(self, checkpoint: Checkpoint):
        self.numbers = checkpoint.numbers
        self._shapes = checkpoint.shapes
        self._pieces: dict[tuple[str, str], list] = {}
        for part in sorted(checkpoint.path.glob("*.safetensors")):
            file = safetensors.safe_open(part, framework="pt")
            for label in file.keys():
                kind, _, rest = label.partition("/")
                name, _, start = rest.partition(_START)
                self._pieces.setdefault((kind, name), []).append((int(start or 0), file, label))
        for pieces in self._pieces.values():
            pieces.sort(key=lambda piece: piece[0])

    @property
    def kinds(self) -> set[str]:
        return {kind for kind, _ in self._pieces}

    def tensors(self, kind: str) -> dict[str, Tensor]:
        """All tensors of a kind, by name."""
        return {name: self.tensor(kind, name) for found, name in self._pieces if found == kind}

    def tensor(self, kind: str, name: str) -> Tensor:
        """One tensor in its shape, on the CPU."""
        pieces = self._pieces[kind, name]
        if _START not in pieces[0][2]:
            return pieces[0][1].get_tensor(pieces[0][2])
        shape = self._shapes[name]
        return self.elements(kind, name, 0, math.prod(shape)).view(shape)

    def elements(self, kind: str, name: str, start: int, stop: int) -> Tensor:
        """Elements `start` to `stop` of one tensor, flat, on the CPU."""
        found = []
        for first, file, label in self._pieces[kind, name]:
            if _START not in label:
                return file.get_tensor(label).flatten()[start:stop]
            piece = file.get_slice(label)
            last = first + piece.get_shape()[0]
            if first < stop and last > start:
                found.append(piece[max(start - first, 0) : min(stop, last) - first])
        return torch.cat(found) if len(found) != 1 else found[0]


def latest_valid(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint in `folder` whose files all match their checksums; warn about each that does not."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return open_checkpoint(path)
        except UserError as error:
            warnings.warn(f"{error}; the checkpoint before it is used", stacklevel=2)
    return None


def path_of(folder: Path, step: int) -> Path:
    """Where the checkpoint after that step is."""
    return folder / f"step-{step:08d}"


def saved_steps(folder: Path) -> dict[int, Path]:
    """The checkpoints in `folder` by step, whole or damaged."""
    return {int(path.name.removeprefix("step-")): path for path in folder.glob("step-*")}


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in that folder after comparing every file with its checksum.

    Raises:
        UserError: a file is missing or damaged.
    """
    try:
        manifest = json.loads((path / _MANIFEST).read_text())
        parts = manifest["files"].items()
    except (OSError, ValueError, KeyError, AttributeError):
        raise UserError(f"checkpoint {path} is damaged: its {_MANIFEST} cannot be read") from None
    for name, expected in parts:
        file = path / name
        if not file.is_file() or file.stat().st_size != expected["bytes"] or _sha256(file) != expected["sha256"]:
            raise UserError(f"checkpoint {path} is damaged: {name} is not what was written")
    return Checkpoint(path, manifest["step"], manifest["numbers"], manifest["shapes"], manifest["about"])


class CheckpointWriter:
    """Writes the checkpoints of one run; every process has one and all call `save` at the same steps."""

    def __init__(
        self, folder: Path, retention: Retention, rank: int, world_size: int, attempt: str, continued_step: int | None
    ):
        """Prepare to write into `folder`.

        Args:
            retention: which checkpoints stay.
            attempt: a name that all processes of this start share and no other start has (`new_attempt`).
            continued_step: the step of the checkpoint that this start continues, which need not be saved again.
        """
        self.folder = folder
        self.retention = retention
        self.rank = rank
        self.world_size = world_size
        self.attempt = attempt
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._saved_step = continued_step
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".step-*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def save(
        self,
        step: int,
        pieces: Iterable[TensorShard],
        numbers: dict[str, float],
        shapes: dict[str, list[int]],
        about: dict[str, str],
    ) -> float | None:
        """Start to save this process's pieces of the state; return the seconds that training was held up.

        Saving the same step twice does nothing and returns None. The other arguments are as in `Checkpoint` and the same in every process.

        Raises:
            UserError: the save before this one failed, e.g. the disk is full.
        """
        started = time.perf_counter()
        self.wait()
        if step == self._saved_step:
            return None
        self._saved_step = step
        tensors = {piece.label: piece.values.detach().to("cpu", copy=True).contiguous() for piece in pieces}
        manifest = {
            "format": _FORMAT,
            "step": step,
            "numbers": numbers,
            "about": about,
            "versions": {"torch": torch.__version__},
        }
        self._thread = threading.Thread(
            target=self._write, args=(manifest | {"shapes": shapes}, tensors), name=f"checkpoint-{self.rank}"
        )
        self._thread.start()
        return time.perf_counter() - started

    def wait(self) -> None:
        """Return when the last save is complete.

        Raises:
            UserError: it failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            raise UserError(
                f"the checkpoint in {self.folder} could not be written: {error}; earlier ones are untouched"
            )

    def _write(self, manifest: dict, tensors: dict[str, Tensor]) -> None:
        unfinished = self.folder / f".step-{manifest['step']:08d}-{self.attempt}"
        try:
            unfinished.mkdir(exist_ok=True)
            part = unfinished / f"part-{self.rank:05d}-of-{self.world_size:05d}.safetensors"
            safetensors.torch.save_file(tensors, part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            entry = {"bytes": part.stat().st_size, "sha256": _sha256(part)}
            # Not durably: flushing the folder would touch it after the main process may have renamed it.
            write_atomically(unfinished / f"{part.name}.json", _json(entry))
            if self.rank == 0:
                self._complete(unfinished, manifest)
        except BaseException as error:
            self._error = error
            if self.rank == 0:
                shutil.rmtree(unfinished, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    (unfinished / f"{self.rank}{_FAILED}").touch()

    def _complete(self, unfinished: Path, manifest: dict) -> None:
        """Wait for the parts of the other processes, then give the checkpoint its name and remove those that need not stay."""
        deadline = time.monotonic() + _PART_TIMEOUT
        while len(entries := sorted(unfinished.glob("*.safetensors.json"))) < self.world_size:
            if failed := sorted(unfinished.glob(f"*{_FAILED}")):
                raise OSError(f"rank {failed[0].name.removesuffix(_FAILED)} could not write its part")
            if not unfinished.is_dir():
                raise OSError("another process removed the folder of its parts")
            if time.monotonic() > deadline:
                raise TimeoutError(f"only {len(entries)} of {self.world_size} processes wrote their part")
            time.sleep(0.02)
        manifest["files"] = {entry.name.removesuffix(".json"): json.loads(entry.read_text()) for entry in entries}
        write_durably(unfinished / _MANIFEST, _json(manifest))
        for entry in entries:
            entry.unlink()
        final = path_of(self.folder, manifest["step"])
        if final.exists():  # a damaged one: a whole one would have been continued
            _remove(final)
        rename_durably(unfinished, final)
        steps = saved_steps(self.folder)
        for step in steps.keys() - self.retention.kept(list(steps)):
            _remove(steps[step])


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint; one that is removed half-way, by a kill, no longer has a checkpoint's name."""
    with contextlib.suppress(OSError):
        shutil.rmtree(checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}-removed")), ignore_errors=True)


def new_attempt() -> str:
    """A name for one start of a run."""
    return uuid.uuid4().hex[:8]


def _json(content: dict) -> bytes:
    return json.dumps(content, indent=1).encode()


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
