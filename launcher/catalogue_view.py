"""The catalogue of recipes as a person reads it."""

import yaml
from rich.console import Console
from rich.table import Table

from recipes.load import load, names


def print_table() -> None:
    """Print one row per recipe of the catalogue."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("recipe", "data", "batch", "epochs", "input", "what it is"):
        table.add_column(heading, justify="right" if heading in ("batch", "epochs", "input") else "left", no_wrap=heading == "recipe")
    for name in names():
        recipe = load(name)
        table.add_row(
            name, recipe.data.name, str(recipe.batch.global_), str(recipe.schedule.epochs), str(recipe.input.size), recipe.summary
        )
    Console().print(table)


def print_recipe(name: str, overrides: list[str]) -> None:
    """Print a recipe as YAML that `bigbatch train` takes as a file, every default spelled out; then where it comes from."""
    recipe = load(name, overrides)
    print(yaml.safe_dump(recipe.to_dict(), sort_keys=False, width=120), end="")
    print(f"# identity {recipe.identity()}")
