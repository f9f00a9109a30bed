"""The directory of one run: its recipe, metadata, metrics and checkpoints."""

import fcntl
import json
import os
import re
import shlex
import socket
from pathlib import Path
from typing import Any, TextIO

import yaml
from pydantic import ValidationError

from data.atomic_io import write_durably
from launcher.runs.metadata import RunMetadata
from launcher.runs.metrics import Metrics
from launcher.runs.weights_digest import weights_digest
from recipes.errors import UserError
from recipes.load import validate
from recipes.local_paths import local_path
from recipes.parsing import parse_yaml
from recipes.schema import Recipe


class RunDirectory:
    """The files of one run under one path.

    They are ``recipe.yaml``, ``run.json``, ``metrics.jsonl``, ``mistakes.json``, ``mistakes/``, ``predictions/``,
    ``checkpoints/``, ``features/``, ``tensorboard/``, ``trackers/`` and ``lock``.
    """

    def __init__(self, path: str | Path):
        self.path = path = local_path(path)
        self.recipe_file = path / "recipe.yaml"
        self.metadata_file = path / "run.json"
        self.metrics = Metrics(path / "metrics.jsonl")
        self.mistakes_file = path / "mistakes.json"
        self.other_mistakes = path / "mistakes"
        self.predictions = path / "predictions"
        self.checkpoints = path / "checkpoints"
        self.features = path / "features"
        self.tensorboard = path / "tensorboard"
        self.trackers = path / "trackers"
        self._lock_file: TextIO | None = None

    def check_recipe(self, recipe: Recipe) -> None:
        """Check that the directory does not hold a run of another recipe.

        A weights file that `model.weights` names may have been moved: its contents are compared, not its path.

        Raises:
            UserError: the directory holds a run of another recipe; names the first key that differs.
        """
        if not self.recipe_file.is_file():
            return
        there = self.recipe()
        difference = _first_difference(there.trajectory(), recipe.trajectory())
        if difference:
            key, its_value, our_value = difference
            raise UserError(
                f"{self.path} holds a run of another recipe ({key} is {its_value} there and {our_value} here): "
                f"choose another --run-dir, or continue that run with other keys by `bigbatch branch "
                f"{shlex.quote(str(self.path))} NEW KEY=VALUE`"
            )
        # A trajectory does not tell one weights file from another.
        if not self._began_with(recipe.model.weights):
            # To resume, the recorded path may be given even if its file is gone: the checkpoint holds all weights.
            original = there.model.weights
            raise UserError(
                f"{self.path} holds a run that began with other weights ({original}, not {recipe.model.weights}): "
                f"choose another --run-dir, or give model.weights={original} to resume it, which is not read again"
            )

    def check_is_free_for(self, recipe: Recipe) -> None:
        """Check that this recipe may train in the directory, and create the directory if it is missing.

        Raises:
            UserError: as `check_recipe`; or the directory cannot be created or written.
        """
        self.check_recipe(recipe)
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UserError(
                f"the run directory {self.path} cannot be made ({error.strerror}): choose another --run-dir"
            ) from None
        if not os.access(self.path, os.W_OK):
            raise UserError(f"the run directory {self.path} cannot be written: choose another --run-dir")

    def check_can_be_made(self) -> None:
        """Refuse a path where no run directory can be made, without making it.

        Raises:
            UserError: the path, or the nearest folder above it that exists, is not a folder or cannot be written.
        """
        path = self.path.absolute()
        nearest = next(place for place in (path, *path.parents) if os.path.lexists(place))
        if not nearest.is_dir():
            raise UserError(
                f"the run directory {self.path} cannot be made ({nearest} is not a folder): choose another --run-dir"
            )
        if not os.access(nearest, os.W_OK | os.X_OK):
            raise UserError(
                f"the run directory {self.path} cannot be written ({nearest} is read-only): choose another --run-dir"
            )

    def lock(self) -> None:
        """Keep other processes from training here until this object or this process is gone, however the process ends.

        The lock also works between machines if their shared file system supports locks. On a file system without locks,
        nothing is locked.

        Raises:
            UserError: another process trains here, which the message names, or the lock file cannot be opened.
        """
        try:
            self._lock_file = (self.path / "lock").open("a+")
        except OSError as error:
            raise UserError(
                f"the run directory {self.path} cannot be locked ({error.strerror}): choose another --run-dir"
            ) from None
        try:
            # Not flock: a forked loader process would inherit it, and hold it for seconds after its trainer was killed.
            fcntl.lockf(self._lock_file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            self._lock_file.seek(0)
            owner = self._lock_file.read().strip() or "another process"
            raise UserError(
                f"{self.path} is being trained by {owner}: wait for it, stop it, or choose another --run-dir"
            ) from None
        except OSError:
            return
        self._lock_file.truncate(0)
        self._lock_file.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._lock_file.flush()

    def check_data(self, digest: str) -> None:
        """Check that the run began with the same data.

        Raises:
            UserError: the digest of the shards differs.
        """
        if self.metadata_file.is_file() and self.metadata().dataset.digest != digest:
            raise UserError(
                f"{self.path} holds a run on shards other than these: give the same --data or choose another --run-dir"
            )

    def recipe(self) -> Recipe:
        """Return the recipe of the run.

        Raises:
            UserError: this is not a run directory, or its recipe cannot be read by this version; names the file.
        """
        file = self.recipe_file
        try:
            values = parse_yaml(file.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{self.path} is not a run directory (no recipe.yaml): `bigbatch train` makes one"
            ) from None
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}): check the run directory") from None
        except (yaml.YAMLError, ValueError) as error:
            raise UserError(f"{file} is not valid YAML ({' '.join(str(error).split())}): restore it") from None
        if not isinstance(values, dict):
            raise UserError(f"{file} is not a mapping of recipe keys to values: restore it")
        try:
            return validate(values)
        except UserError as error:
            raise UserError(f"{file}: {error}") from None

    def metadata(self) -> RunMetadata:
        """Return the run's metadata: data set, model, steps, versions.

        Raises:
            UserError: this is not a run directory, or ``run.json`` is damaged.
        """
        file = self.metadata_file
        try:
            return RunMetadata.model_validate_json(file.read_bytes())
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{self.path} is not a run directory (no run.json): `bigbatch train` makes one") from None
        except OSError as error:
            raise UserError(f"{file} cannot be read ({error.strerror}): check the run directory") from None
        except ValidationError:
            raise UserError(f"{file} is damaged: remove it, and resuming the training writes it again") from None

    def write(self, recipe: Recipe, metadata: RunMetadata) -> None:
        """Write ``recipe.yaml`` and ``run.json``, each atomically.

        Raises:
            UserError: they cannot be written, e.g. because the disk is full.
        """
        try:
            write_durably(self.recipe_file, yaml.safe_dump(recipe.to_dict(), sort_keys=False).encode())
            write_durably(self.metadata_file, json.dumps(metadata.model_dump(), indent=1).encode())
        except OSError as error:
            raise UserError(
                f"the run directory {self.path} cannot be written ({error.strerror}): choose another --run-dir"
            ) from None

    def _began_with(self, origin: str | None) -> bool:
        """Return whether the run began with these weights: the path or the contents must be the same."""
        if origin == self.recipe().model.weights:
            return True
        recorded = self.metadata().weights_sha256 if self.metadata_file.is_file() else None
        return recorded is not None and recorded == weights_digest(origin)


def find_run(path: str | Path, step: int | None = None) -> tuple[RunDirectory, int | None] | None:
    """Return the run that a path names and the step of its checkpoint; None if the path is a weights file.

    A run is named by its directory, or by a checkpoint in it, ``RUN/checkpoints/step-00000033``. The step is that of
    the checkpoint, or else `step`; None means the newest one.

    Raises:
        UserError: there is no such path, or `step` is given together with a checkpoint or a file.
    """
    path = local_path(path)
    if not path.exists():
        raise UserError(
            f"there is no run or weights file {path}: give a run directory, one of its checkpoints, or a weights file"
        )
    if path.is_dir() and (path / "recipe.yaml").exists():
        return RunDirectory(path), step
    absolute = Path.cwd() / path  # not resolved: a link to a checkpoint is not in the folder of its run
    named = re.fullmatch(r"step-(\d+)", absolute.name)
    if path.is_dir() and named and absolute.parent.name == "checkpoints":
        if step is not None:
            raise UserError(f"{path} is the checkpoint of one step: leave --step out, or give the run directory")
        inside = path.parent.name == "checkpoints" and path.parent.parent.name
        return RunDirectory(path.parent.parent if inside else absolute.parent.parent), int(named[1])
    # A folder that Hugging Face's hub downloads holds weights, not a run.
    if path.is_dir() and not (path / "config.json").exists():
        return RunDirectory(path), step
    if step is not None:
        raise UserError(f"--step chooses a checkpoint of a run, and {path} is not a run directory: leave it out")
    return None


def _first_difference(there: dict[str, Any], here: dict[str, Any], prefix: str = "") -> tuple[str, Any, Any] | None:
    """Return the first dotted key whose values differ, with both values; None if all are equal."""
    for key in {**there, **here}:
        one, other = there.get(key), here.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            if found := _first_difference(one, other, f"{prefix}{key}."):
                return found
        elif one != other:
            return prefix + key, one, other
    return None
