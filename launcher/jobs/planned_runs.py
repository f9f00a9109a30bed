"""Which runs a `bigbatch submit` is about: one, a chain of recipes, or a sweep over one recipe."""

import re
from dataclasses import dataclass
from pathlib import Path

from data.reading.storage import is_url
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError
from recipes.load import load
from recipes.schema import Recipe
from slurm.submit import plain_word

WEIGHTS = "weights.safetensors"  # what a finished job exports into its run directory


@dataclass(frozen=True)
class Options:
    """What goes for all recipes of one `bigbatch submit`."""

    data: str | None = None
    run_dir: Path | None = None
    cluster: str | None = None
    nodes: str = "1"
    gpus_per_node: int | None = None
    partition: str | None = None
    time: str | None = None
    sweep: str | None = None
    after: str | None = None
    micro_batch: int | None = None
    workers: int | None = None


@dataclass(frozen=True)
class PlannedRun:
    """One run that will be submitted."""

    recipe: Recipe
    directory: RunDirectory

    @property
    def job_folder(self) -> Path:
        return self.directory.path / "job"


def plan(arguments: list[str], options: Options) -> list[list[PlannedRun]]:
    """The runs to submit: the outer list is a chain, an inner one a sweep.

    Raises:
        UserError: a recipe or an override is wrong, or a sweep is asked of a chain.
    """
    named = _recipes_with_overrides(arguments)
    if options.sweep and len(named) > 1:
        raise UserError(
            "--array sweeps over one recipe and there are several: submit the recipes that follow once the best is known"
        )
    if options.sweep:
        (name, overrides), (key, values) = named[0], _sweep(options.sweep)
        parent = options.run_dir or Path("runs") / f"{load(name, overrides).name}-{key}"
        return [
            [
                _run(load(name, [*overrides, f"{key}={v}"]), parent / plain_word(f"{key}={v}"), options.data)
                for v in values
            ]
        ]
    chain: list[list[PlannedRun]] = []
    for name, overrides in named:
        recipe = load(name, overrides)
        if len(named) == 1:
            path = options.run_dir or Path("runs") / recipe.name
        else:
            path = (options.run_dir or Path("runs")) / recipe.name
        if chain and not any(text.startswith("model.weights=") for text in overrides):
            weights = chain[-1][0].directory.path / WEIGHTS
            recipe = recipe.variant(model={"weights": str(weights)})
        chain.append([_run(recipe, path, options.data)])
    paths = [run.directory.path for runs in chain for run in runs]
    if len(set(paths)) < len(paths):
        raise UserError(
            "two recipes of the chain have one name and would share a run directory: give one of them name=OTHER"
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


def _sweep(text: str) -> tuple[str, list[str]]:
    """Key and values of ``key=v1,v2``; a comma inside brackets does not divide."""
    key, equals, rest = text.partition("=")
    values = re.findall(r"(?:\[[^\]]*\]|[^,\[])+", rest)
    if not equals or len(values) < 2 or len(set(values)) < len(values):
        raise UserError(
            f"--array {text!r} is not a sweep: give a key and two or more different values, e.g. optimizer.lr=1e-3,2e-3,4e-3"
        )
    return key, values


def _run(recipe: Recipe, path: Path, data: str | None) -> PlannedRun:
    """The run with all paths absolute: the job starts in another folder."""
    where = data or recipe.data.path
    weights = recipe.model.weights
    changes = {}
    if where is not None:
        where = where if is_url(where) else str(Path(where).absolute())
        changes["data"] = {"path": where}
    if weights not in (None, "timm"):
        changes["model"] = {"weights": str(Path(weights).absolute())}
    return PlannedRun(recipe.variant(**changes), RunDirectory(path.absolute()))
