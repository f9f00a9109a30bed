"""What `bigbatch recipes` prints: the catalogue as a table, or one recipe as YAML."""

import sys
import textwrap

import yaml
from rich.console import Console
from rich.table import Table

from recipes.load import load, recipe_names

_PIPED_WIDTH = 200  # columns where the output is not a terminal, so that no line is cut off


def print_table() -> None:
    """Print one line per recipe of the catalogue, as wide as the terminal."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("recipe", "data", "batch", "epochs", "input", "what it is"):
        table.add_column(heading, justify="right" if heading in ("batch", "epochs", "input") else "left", no_wrap=True)
    for name in recipe_names():
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
    """Print a recipe with every default as a YAML file for `bigbatch train`; identity and source follow as comments."""
    recipe = load(name, overrides)
    print(yaml.safe_dump(recipe.to_dict(), sort_keys=False, width=120), end="")
    print(f"# identity {recipe.identity()}")
    print(textwrap.fill(f"source: {recipe.source}", 100, initial_indent="# ", subsequent_indent="# "))
