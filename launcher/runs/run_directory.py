"""The directory of one run: its recipe, what it runs on, its metrics and its checkpoints."""

import fcntl
import json
import os
import socket
from pathlib import Path

import yaml

from data.atomic_io import write_durably
from launcher.runs.metrics import Metrics
from recipes.errors import UserError
from recipes.load import validate
from recipes.schema import Recipe


class RunDirectory:
    """``recipe.yaml``, ``run.json``, ``metrics.jsonl``, ``mistakes.json``, ``checkpoints/``, ``tensorboard/``, ``lock`` under one path."""

    def __init__(self, path: Path):
        self.path = path
        self.recipe_file = path / "recipe.yaml"
        self.facts_file = path / "run.json"
        self.metrics = Metrics(path / "metrics.jsonl")
        self.mistakes_file = path / "mistakes.json"
        self.checkpoints = path / "checkpoints"
        self.tensorboard = path / "tensorboard"
        self._lock = None

    def check_recipe(self, recipe: Recipe) -> None:
        """Refuse a directory that holds a run of another recipe.

        Raises:
            UserError: it does; with the first key that differs.
        """
        if self.recipe_file.is_file():
            difference = _first_difference(self.recipe().trajectory(), recipe.trajectory())
            if difference:
                key, there, here = difference
                raise UserError(
                    f"{self.path} holds a run of another recipe ({key} is {there} there and {here} here): choose another --run-dir"
                )

    def check_is_free_for(self, recipe: Recipe) -> None:
        """Refuse to continue a run of another recipe; make the directory.

        Raises:
            UserError: as `check_recipe`; or it cannot be written.
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

    def hold(self) -> None:
        """Let no other process train here as long as this object lives; the system lets go when this process ends, however it ends.

        Processes of one machine are told apart, and those of several where the file system has locks for all; one without
        locks is taken as it is.

        Raises:
            UserError: another process trains here; says which.
        """
        self._lock = (self.path / "lock").open("a+")
        try:
            fcntl.lockf(
                self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB
            )  # unlike flock, forked loader processes do not hold it
        except (BlockingIOError, PermissionError):
            self._lock.seek(0)
            raise UserError(
                f"{self.path} is being trained by {self._lock.read().strip() or 'another process'}: wait for it, stop it, "
                f"or choose another --run-dir"
            ) from None
        except OSError:
            return
        self._lock.truncate(0)
        self._lock.write(f"process {os.getpid()} on {socket.gethostname()}")
        self._lock.flush()

    def check_data(self, digest: str) -> None:
        """Refuse to continue on other data than the run began with.

        Raises:
            UserError: the digest of the shards differs.
        """
        if self.facts_file.is_file() and self.facts()["dataset"]["digest"] != digest:
            raise UserError(
                f"{self.path} holds a run on other shards than these: give the same --data or choose another --run-dir"
            )

    def recipe(self) -> Recipe:
        """The recipe of the run.

        Raises:
            UserError: this is not a run directory.
        """
        if not self.recipe_file.is_file():
            raise UserError(f"{self.path} is not a run directory (no recipe.yaml): `bigbatch train` makes one")
        return validate(yaml.safe_load(self.recipe_file.read_text()))

    def facts(self) -> dict:
        """What the run is about: data set, model, steps, versions.

        Raises:
            UserError: this is not a run directory.
        """
        try:
            return json.loads(self.facts_file.read_text())
        except (OSError, ValueError):
            raise UserError(f"{self.path} is not a run directory (no run.json): `bigbatch train` makes one") from None

    def write_description(self, recipe: Recipe, facts: dict) -> None:
        """Write the recipe and the facts, each whole or not at all."""
        write_durably(self.recipe_file, yaml.safe_dump(recipe.to_dict(), sort_keys=False).encode())
        write_durably(self.facts_file, json.dumps(facts, indent=1).encode())


def _first_difference(there: dict, here: dict, prefix: str = ""):
    for key in {**there, **here}:
        one, other = there.get(key), here.get(key)
        if isinstance(one, dict) and isinstance(other, dict):
            if found := _first_difference(one, other, f"{prefix}{key}."):
                return found
        elif one != other:
            return prefix + key, one, other
    return None
