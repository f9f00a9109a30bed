"""Arguments and options that several commands share, and the recipe that they describe."""

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from launcher.cli.completion import catalogue_names, recipe_keys, run_directories
from recipes.local_paths import local_path
from recipes.schema import Recipe


def _micro_batch(text: str) -> int | None:
    """Return the number, or None for "auto"; raise BadParameter for anything else."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is neither a number of images nor auto")
    return int(text)


def on_this_machine(given: Path | list[Path] | None) -> Path | list[Path] | None:
    """Return the path or paths of an option as `recipes.local_paths.local_path` does; every option of paths calls it.

    Raises:
        UserError: one is a URL.
    """
    if isinstance(given, list):
        return [local_path(one) for one in given]
    return None if given is None else local_path(given)


RecipeArgument = Annotated[
    str,
    typer.Argument(
        metavar="RECIPE", help="A name from `bigbatch recipes`, or a YAML file.", autocompletion=catalogue_names
    ),
]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="KEY=VALUE", help="Overrides of recipe keys, e.g. optimizer.lr=2e-3.", autocompletion=recipe_keys
    ),
]
RunArgument = Annotated[
    Path,
    typer.Argument(
        callback=on_this_machine,
        metavar="RUN",
        help="A run directory.",
        show_default=False,
        autocompletion=run_directories,
    ),
]
DataOption = Annotated[
    str | None, typer.Option("--data", help="Folder or URL of shards that `bigbatch shard` wrote.", show_default=False)
]
Procs = Annotated[
    int | None, typer.Option("--procs", help="Training processes on this machine. Default: one per GPU.", min=1)
]
MicroBatch = Annotated[
    int | None,
    typer.Option(
        parser=_micro_batch,
        metavar="N|auto",
        help="Images per forward pass of one process. It changes speed and memory, never the result. "
        "Default: auto, as the plan for the GPUs recommends.",
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        help="Processes that load images, per process that computes; 0: it loads them itself. "
        "Default: as many as the CPUs allow.",
        min=0,
    ),
]
Import = Annotated[
    list[str] | None,
    typer.Option(
        "--import",
        metavar="MODULE",
        help="A Python module of your own that registers a model, loss, optimizer, transform or source. May be "
        "repeated.",
        show_default=False,
    ),
]
Step = Annotated[
    int | None,
    typer.Option(help="The step of the run's checkpoint to take. Default: the newest.", min=0),
]


class SplitName(StrEnum):
    """The splits that shards may have."""

    train = "train"
    val = "val"
    test = "test"


def with_data(overrides: list[str] | None, data: str | None) -> list[str]:
    """Return the overrides of a recipe, with `--data` as one of them."""
    return [*(overrides or []), *([f"data.path={json.dumps(data)}"] if data else [])]


def print_lr_note(recipe: Recipe) -> None:
    """Say what becomes of the learning rate where a command's arguments change the batch size."""
    from recipes.lr_scaling import lr_note

    if note := lr_note(recipe):
        print(f"note: {note}", flush=True)


def load_recipe(recipe: str, overrides: list[str] | None, data: str | None, modules: list[str] | None = None) -> Recipe:
    """Return the recipe that a command's arguments describe; `modules` are those of `--import`.

    Raises:
        UserError: the recipe or an override is wrong.
    """
    from recipes.load import load, with_modules

    return with_modules(load(recipe, with_data(overrides, data)), modules or [])
