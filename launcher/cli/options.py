"""Arguments and options that several parts of the `bigbatch` command have, and what `--data` means."""

import json
from typing import Annotated

import typer


def _micro_batch(text: str) -> int | None:
    """Raises BadParameter unless `text` is "auto" or a number."""
    if text == "auto":
        return None
    if not text.isdecimal():
        raise typer.BadParameter(f"{text!r} is neither a number of images nor auto")
    return int(text)


RecipeArgument = Annotated[
    str, typer.Argument(metavar="RECIPE", help="A name from `bigbatch recipes`, or a YAML file.")
]
Overrides = Annotated[
    list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Changes to the recipe, e.g. optimizer.lr=2e-3.")
]
DataOption = Annotated[str | None, typer.Option("--data", help="Folder or URL of shards made by `bigbatch shard`.")]
MicroBatch = Annotated[
    int | None,
    typer.Option(
        parser=_micro_batch,
        metavar="N|auto",
        help="Images per forward pass; changes speed and memory, never the result. Default: auto, what the plan recommends for the GPUs.",
    ),
]
Workers = Annotated[
    int | None, typer.Option(help="Processes that prepare images, per training process; 0: none.", min=0)
]


def with_data(overrides: list[str] | None, data: str | None) -> list[str]:
    """The changes to a recipe with those of `--data` among them."""
    return [*(overrides or []), *([f"data.path={json.dumps(data)}"] if data else [])]
