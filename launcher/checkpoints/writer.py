"""Writes checkpoints so that each is either complete or absent.

Every rank writes its part of the state into a hidden folder, and then a record of it with size and SHA-256. The
record appears atomically, once the part is on the disk. Writing it is the last thing that a rank does in the folder:
after that, only the main process changes the folder. When all records are there, the main process adds
``checkpoint.json``, flushes the names of all files to the disk, and renames the folder. A rank that cannot write its
part leaves a marker file instead, so that the main process does not wait for it. So a save that is killed half-way
never gets a checkpoint's name.

The state is copied first and then written by a thread while training continues. Training waits only for the copy.
"""

import contextlib
import json
import shutil
import threading
import time
import uuid
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from data.atomic_io import rename_durably, replacing, write_atomically, write_durably
from launcher.checkpoints.checkpoint import FORMAT, MANIFEST, TensorShard, checkpoint_path, saved_steps, sha256_of
from launcher.checkpoints.retention import Retention
from recipes.errors import UserError

_FAILED = ".failed"  # suffix of the marker file of a rank that could not write its part
_PART_TIMEOUT = 1800  # seconds that the main process waits for another rank's part: slow storage takes minutes


class CheckpointWriter:
    """Writes the checkpoints of one run. Every rank has one, and all call `save` at the same steps."""

    def __init__(
        self, folder: Path, retention: Retention, rank: int, world_size: int, attempt: str, resumed_step: int | None
    ):
        """Prepare to write into `folder`. The main process creates it and removes what killed saves left behind.

        Args:
            folder: of the run's checkpoints.
            retention: decides which checkpoints are kept.
            rank: of this process; rank 0 is the main process.
            world_size: number of ranks.
            attempt: a name that all ranks of this start share and no other start has (`new_attempt`). It keeps ranks of
                an earlier start that are still alive from writing into this start's folders.
            resumed_step: the step of the checkpoint that this start resumes from, which need not be saved again; None
                for a new run.
        """
        self.folder = folder
        self.retention = retention
        self.rank = rank
        self.world_size = world_size
        self.attempt = attempt
        self._thread: threading.Thread | None = None
        self._error: BaseException | None = None
        self._saved_step = resumed_step
        if rank == 0:
            folder.mkdir(parents=True, exist_ok=True)
            for leftover in folder.glob(".step-*"):
                shutil.rmtree(leftover, ignore_errors=True)

    def save(
        self,
        step: int,
        shards: Iterable[TensorShard],
        scalars: dict[str, float],
        shapes: dict[str, list[int]],
        metadata: dict[str, str],
    ) -> float | None:
        """Start to save this rank's shards of the state; return the seconds for which training had to wait.

        Saving a step a second time does nothing and returns None. The arguments after `shards` become the attributes of
        `launcher.checkpoints.checkpoint.Checkpoint`, and are the same on every rank.

        Raises:
            UserError: the previous save failed, e.g. because the disk is full.
        """
        started = time.perf_counter()
        self.wait()
        if step == self._saved_step:
            return None
        self._saved_step = step
        tensors = {shard.label: shard.values.detach().to("cpu", copy=True).contiguous() for shard in shards}
        manifest = {
            "format": FORMAT,
            "step": step,
            "numbers": scalars,  # this key and the next are older than the names of the arguments
            "about": metadata,
            "versions": {"torch": torch.__version__},
            "shapes": shapes,
        }
        self._thread = threading.Thread(target=self._write, args=(manifest, tensors), name=f"checkpoint-{self.rank}")
        self._thread.start()
        return time.perf_counter() - started

    def wait(self) -> None:
        """Wait until the last save is complete.

        Raises:
            UserError: it failed.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._error is not None:
            error, self._error = self._error, None
            if not self.folder.is_dir():
                raise UserError(
                    f"the checkpoint could not be written, because the folder {self.folder} has been deleted"
                )
            raise UserError(
                f"the checkpoint in {self.folder} could not be written: {error}; earlier ones are untouched"
            )

    def _write(self, manifest: dict[str, Any], tensors: dict[str, Tensor]) -> None:
        """Write this rank's part; on the main process, complete the checkpoint. Errors are kept for `wait`."""
        unfinished = self.folder / f".step-{manifest['step']:08d}-{self.attempt}"
        try:
            unfinished.mkdir(exist_ok=True)
            part = unfinished / f"part-{self.rank:05d}-of-{self.world_size:05d}.safetensors"
            with replacing(part) as temporary:
                safetensors.torch.save_file(tensors, temporary)
            record = {"bytes": part.stat().st_size, "sha256": sha256_of(part)}
            # Not durably: that would open the folder when the main process may have renamed it already.
            write_atomically(unfinished / f"{part.name}.json", _json(record))
            if self.rank == 0:
                self._complete(unfinished, manifest)
        except BaseException as error:  # a thread loses every exception that is not stored
            self._error = error
            if self.rank == 0:
                shutil.rmtree(unfinished, ignore_errors=True)
            else:
                with contextlib.suppress(OSError):
                    (unfinished / f"{self.rank}{_FAILED}").touch()

    def _complete(self, unfinished: Path, manifest: dict[str, Any]) -> None:
        """Wait for the other ranks' parts, give the checkpoint its name, and remove those that are not kept."""
        records = self._wait_for_records(unfinished)
        manifest["files"] = {record.name.removesuffix(".json"): json.loads(record.read_text()) for record in records}
        write_durably(unfinished / MANIFEST, _json(manifest))
        for record in records:
            record.unlink()
        final = checkpoint_path(self.folder, manifest["step"])
        if final.exists():  # it must be damaged, because training would have resumed from a valid one
            _remove(final)
        rename_durably(unfinished, final)
        steps = saved_steps(self.folder)
        for step in steps.keys() - self.retention.kept(list(steps)):
            _remove(steps[step])

    def _wait_for_records(self, unfinished: Path) -> list[Path]:
        deadline = time.monotonic() + _PART_TIMEOUT
        while len(records := sorted(unfinished.glob("*.safetensors.json"))) < self.world_size:
            if failed := sorted(unfinished.glob(f"*{_FAILED}")):
                raise OSError(f"rank {failed[0].name.removesuffix(_FAILED)} could not write its part")
            if not unfinished.is_dir():
                raise OSError("another process removed the folder of its parts")
            if time.monotonic() > deadline:
                raise TimeoutError(f"only {len(records)} of {self.world_size} ranks wrote their part")
            time.sleep(0.02)
        return records


def _remove(checkpoint: Path) -> None:
    """Remove a checkpoint. It is renamed first, so an interrupted removal leaves no incomplete checkpoint."""
    with contextlib.suppress(OSError):
        shutil.rmtree(checkpoint.rename(checkpoint.with_name(f".{checkpoint.name}-removed")), ignore_errors=True)


def new_attempt() -> str:
    """Return a name that no other start of a run has."""
    return uuid.uuid4().hex[:8]


def _json(content: dict[str, Any]) -> bytes:
    return json.dumps(content, indent=1).encode()
