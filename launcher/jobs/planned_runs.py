"""Which runs a `bigbatch submit` asks for: a single one, a chain of recipes, or a sweep over one recipe."""

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.reading.storage import place_of
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError
from recipes.load import load, with_modules
from recipes.lr_scaling import lr_note
from recipes.schema import Recipe
from slurm.submit import plain_word

WEIGHTS = "weights.safetensors"  # the file that a finished job exports into its run directory


@dataclass(frozen=True)
class SubmitOptions:
    """The options of one `bigbatch submit`; they apply to all of its recipes."""

    data: str | None = None
    modules: tuple[str, ...] = ()
    run_dir: Path | None = None
    cluster: str | None = None
    nodes: str = "1"
    gpus_per_node: int | None = None
    gpu_type: str | None = None
    partition: str | None = None
    time: str | None = None
    sweep: str | None = None  # KEY=VALUE,VALUE,... or the same with %N: at most N runs at a time
    after: str | None = None
    micro_batch: int | None = None
    workers: int | None = None
    audit: int | None = None  # steps between audits (`launcher.training.audit`)

    @property
    def at_once(self) -> int | None:
        """How many runs of the sweep may train at the same time; None: all."""
        limit = re.search(r"%(\d+)$", self.sweep or "")
        return int(limit[1]) if limit else None


@dataclass(frozen=True)
class PlannedRun:
    """A run that is about to be submitted.

    Attributes:
        lr_note: what becomes of the learning rate where the overrides change the batch size; None: nothing to say.
    """

    recipe: Recipe
    directory: RunDirectory
    lr_note: str | None = None

    @property
    def job_folder(self) -> Path:
        """The folder of the job's records inside the run directory."""
        return self.directory.path / "job"


def plan_runs(arguments: list[str], options: SubmitOptions) -> list[list[PlannedRun]]:
    """Return the runs to submit: the outer list is a chain, each inner list a sweep.

    Args:
        arguments: recipes, each followed by its overrides.

    Raises:
        UserError: a recipe or an override is wrong, or a sweep is asked of a chain.
    """
    named = _recipes_with_overrides(arguments)
    if not options.sweep:
        return _chain(named, options)
    if len(named) > 1:
        raise UserError(
            "--array sweeps over one recipe, and several are given: "
            "submit the recipes that follow once the best run is known"
        )
    (name, overrides), (key, values) = named[0], _parse_sweep(options.sweep)
    parent = options.run_dir or Path("runs") / f"{load(name, overrides).name}-{key}"
    return [
        [
            _planned(name, [*overrides, f"{key}={value}"], parent / plain_word(f"{key}={value}"), options)
            for value in values
        ]
    ]


def _chain(named: list[tuple[str, list[str]]], options: SubmitOptions) -> list[list[PlannedRun]]:
    """Each recipe after the first starts from the weights of the one before, unless its overrides name others."""
    chain: list[list[PlannedRun]] = []
    for name, overrides in named:
        recipe = load(name, overrides)
        if len(named) == 1:
            path = options.run_dir or Path("runs") / recipe.name
        else:
            path = (options.run_dir or Path("runs")) / recipe.name
        if chain and not any(text.startswith("model.weights=") for text in overrides):
            weights = chain[-1][0].directory.path / WEIGHTS
            overrides = [*overrides, f"model.weights={json.dumps(str(weights))}"]
        chain.append([_planned(name, overrides, path, options)])
    paths = [run.directory.path for runs in chain for run in runs]
    if len(set(paths)) < len(paths):
        raise UserError(
            "two recipes of the chain have the same name and would share a run directory: give one of them name=OTHER"
        )
    return chain


def _recipes_with_overrides(arguments: list[str]) -> list[tuple[str, list[str]]]:
    named: list[tuple[str, list[str]]] = []
    for argument in arguments:
        if "=" in argument and not argument.endswith((".yaml", ".yml")):
            if not named:
                raise UserError(
                    f"the override {argument!r} comes before any recipe: overrides follow the recipe they change"
                )
            named[-1][1].append(argument)
        else:
            named.append((argument, []))
    return named


def _parse_sweep(text: str) -> tuple[str, list[str]]:
    """Return the key and the values of ``key=v1,v2%N``; a comma inside brackets belongs to a value."""
    key, equals, rest = re.sub(r"%\d+$", "", text).partition("=")
    values = re.findall(r"(?:\[[^\]]*\]|[^,\[])+", rest)
    if text.endswith("%0"):
        raise UserError(f"--array {text!r} lets no run start: give the number that may run at once, e.g. %2")
    if not equals or len(values) < 2 or len(set(values)) < len(values):
        raise UserError(
            f"--array {text!r} is not a sweep: give a key and two or more different values, "
            f"e.g. optimizer.lr=1e-3,2e-3,4e-3"
        )
    return key, values


def _planned(name: str, overrides: list[str], path: Path, options: SubmitOptions) -> PlannedRun:
    """Return the run with absolute paths, because its job works in another folder."""
    recipe = with_modules(load(name, overrides), list(options.modules))
    shards = options.data or recipe.data.path
    weights = recipe.model.weights_path
    changes: dict[str, Any] = {}
    if shards is not None:
        place = place_of(shards)
        changes["data"] = {"path": str(place.absolute()) if isinstance(place, Path) else place}
    if weights is not None:
        changes["model"] = {"weights": str(weights.absolute())}
    return PlannedRun(recipe.variant(**changes), RunDirectory(path.absolute()), lr_note(recipe))
