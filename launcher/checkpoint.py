"""Checkpoints: whole or not there.

A checkpoint is a folder ``step-00001234`` with one safetensors file per process that wrote it, tensors named
``kind/parameter`` (e.g. ``exp_avg/stem.0.weight``), and ``checkpoint.json`` with the step, what the run was, and size and
SHA-256 of every file. All processes write their share into a hidden folder; when all parts are there, the main process adds
the JSON and renames the folder. What is killed half-way never gets the final name; what is damaged afterwards does not
match its checksum, and the checkpoint before it is used.

The state is copied first and written by a thread, so training goes on meanwhile; the copy is the only stall.
"""

import hashlib
import json
import os
import shutil
import threading
import time
import uuid
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from recipes.errors import UserError

_FORMAT = 1
_MANIFEST = "checkpoint.json"
_PART_TIMEOUT = 1800  # seconds that the main process waits for another one's part


@dataclass(frozen=True)
class Checkpoint:
    """A whole checkpoint on disk."""

    path: Path
    step: int
    updates: int
    identity: str
    dataset: str

    def read(self, kinds: Iterable[str] | None = None) -> dict[str, dict[str, Tensor]]:
        """Return the tensors by kind and name, on the CPU; only of some kinds if given."""
        found: dict[str, dict[str, Tensor]] = {}
        for part in sorted(self.path.glob("*.safetensors")):
            with safetensors.safe_open(part, framework="pt") as file:
                for label in file.keys():
                    kind, _, name = label.partition("/")
                    if kinds is None or kind in kinds:
                        found.setdefault(kind, {})[name] = file.get_tensor(label)
        return found


def newest_whole(folder: Path) -> Checkpoint | None:
    """Return the newest checkpoint in `folder` whose files all match their checksums; warn about each that does not."""
    for path in sorted(folder.glob("step-*"), reverse=True):
        try:
            return open_checkpoint(path)
        except UserError as error:
            warnings.warn(f"{error}; the checkpoint before it is used", stacklevel=2)
    return None


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
    return Checkpoint(path, manifest["step"], manifest["updates"], manifest["identity"], manifest["dataset"])


class CheckpointWriter:
    """Writes the checkpoints of one run; every process has one and all call `save` at the same steps."""

    def __init__(self, folder: Path, keep: int, rank: int, world_size: int, attempt: str, continued_step: int | None):
        """Prepare to write into `folder`.

        Args:
            keep: how many checkpoints stay.
            attempt: a name that all processes of this start share and no other start has (`new_attempt`).
            continued_step: the step of the checkpoint that this start continues, which need not be saved again.
        """
        self.folder = folder
        self.keep = keep
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

    def save(self, step: int, updates: int, identity: str, dataset: str, state: Iterable[tuple[str, str, Tensor]]) -> float:
        """Start to save this process's part of the state; return the seconds that training was held up.

        Saving the same step twice does nothing.

        Raises:
            UserError: the save before this one failed, e.g. the disk is full.
        """
        started = time.perf_counter()
        self.wait()
        if step == self._saved_step:
            return 0.0
        self._saved_step = step
        tensors = {f"{kind}/{name}": value.to("cpu", copy=True).contiguous() for kind, name, value in state}
        header = {"format": _FORMAT, "step": step, "updates": updates, "identity": identity, "dataset": dataset}
        header["versions"] = {"torch": torch.__version__}
        self._thread = threading.Thread(target=self._write, args=(header, tensors), name="checkpoint")
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
            raise UserError(f"the checkpoint in {self.folder} could not be written: {error}; earlier ones are untouched")

    def _write(self, header: dict, tensors: dict[str, Tensor]) -> None:
        step = header["step"]
        unfinished = self.folder / f".step-{step:08d}-{self.attempt}"
        try:
            unfinished.mkdir(exist_ok=True)
            part = unfinished / f"part-{self.rank:05d}-of-{self.world_size:05d}.safetensors"
            safetensors.torch.save_file(tensors, part)
            _sync(part)
            entry = {"bytes": part.stat().st_size, "sha256": _sha256(part)}
            _write_json(unfinished / f"{part.name}.json", entry)
            if self.rank == 0:
                self._complete(unfinished, header)
        except BaseException as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            self._error = error

    def _complete(self, unfinished: Path, header: dict) -> None:
        """Wait for the parts of the other processes, then give the checkpoint its name and remove the oldest."""
        deadline = time.monotonic() + _PART_TIMEOUT
        while len(entries := sorted(unfinished.glob("*.safetensors.json"))) < self.world_size:
            if time.monotonic() > deadline:
                raise TimeoutError(f"only {len(entries)} of {self.world_size} processes wrote their part")
            time.sleep(0.02)
        header["files"] = {entry.name.removesuffix(".json"): json.loads(entry.read_text()) for entry in entries}
        _write_json(unfinished / _MANIFEST, header)
        for entry in entries:
            entry.unlink()
        _sync(unfinished)
        final = self.folder / f"step-{header['step']:08d}"
        shutil.rmtree(final, ignore_errors=True)  # only a damaged one can be there: a whole one would have been continued
        unfinished.rename(final)
        _sync(self.folder)
        for old in sorted(self.folder.glob("step-*"))[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)


def new_attempt() -> str:
    """A name for one start of a run."""
    return uuid.uuid4().hex[:8]


def _write_json(path: Path, content: dict) -> None:
    temporary = path.with_name(f"{path.name}.unfinished")
    temporary.write_text(json.dumps(content, indent=1))
    _sync(temporary)
    temporary.rename(path)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
