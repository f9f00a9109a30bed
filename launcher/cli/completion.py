"""What the shell completes besides commands and options: recipe names, recipe keys and run directories.

`bigbatch --install-completion` switches it on. It runs at every press of Tab, so nothing here imports torch.
"""

from pathlib import Path


def catalogue_names(incomplete: str) -> list[str]:
    """Return the names in the catalogue that begin so; without any, the shell completes files instead."""
    from recipes.load import recipe_names

    return _beginning(incomplete, recipe_names())


def recipe_keys(incomplete: str) -> list[str]:
    """Return the recipe keys that begin so, each with the equals sign of an override."""
    from recipes.load import config_keys

    return _beginning(incomplete, [f"{key}=" for key in config_keys()])


def recipe_names_and_keys(incomplete: str) -> list[str]:
    """Return what `bigbatch submit` takes: recipe names, and keys once one has been begun."""
    return catalogue_names(incomplete) or recipe_keys(incomplete)


def run_directories(incomplete: str) -> list[str]:
    """Return the run directories in `runs` and in its folders of sweeps that begin so."""
    found = [str(file.parent) for pattern in ("*", "*/*") for file in Path("runs").glob(f"{pattern}/recipe.yaml")]
    return _beginning(incomplete, sorted(found))


def _beginning(incomplete: str, candidates: list[str]) -> list[str]:
    return [candidate for candidate in candidates if candidate.startswith(incomplete)]
