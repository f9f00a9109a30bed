"""The catalogue of recipes as a person reads it."""

import sys
import textwrap

import yaml
from rich.console import Console
from rich.table import Table

from recipes.load import load, names

_PIPED_WIDTH = 200


def print_table() -> None:
    """Print one line per recipe of the catalogue; a terminal cuts off what does not fit, a pipe gets it all."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("recipe", "data", "batch", "epochs", "input", "what it is"):
        table.add_column(heading, justify="right" if heading in ("batch", "epochs", "input") else "left", no_wrap=True)
    for name in names():
        recipe = load(name)
        table.add_row(
            name,
            recipe.data.name,
            str(recipe.batch.global_),
            str(recipe.schedule.epochs),
            str(recipe.input.size),
            recipe.summary,
        )
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)


def print_recipe(name: str, overrides: list[str]) -> None:
    """Print a recipe as YAML that `bigbatch train` takes as a file, every default spelled out; then where it comes from."""
    recipe = load(name, overrides)
    print(yaml.safe_dump(recipe.to_dict(), sort_keys=False, width=120), end="")
    print(f"# identity {recipe.identity()}")
    print(textwrap.fill(f"source: {recipe.source}", 100, initial_indent="# ", subsequent_indent="# "))
