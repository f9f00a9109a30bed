"""The keys in which recipes differ."""

from collections.abc import Sequence
from typing import Any

from recipes.schema import Recipe

_DESCRIPTIVE = ("name", "summary", "source", "branch")  # keys that only describe a recipe


def recipe_differences(recipes: Sequence[Recipe]) -> list[tuple[str, list[Any]]]:
    """Return the keys whose values are not the same in all recipes, with the value in each."""
    flat = [flat_recipe(recipe) for recipe in recipes]
    return [(key, [one[key] for one in flat]) for key in flat[0] if any(one[key] != flat[0][key] for one in flat)]


def flat_recipe(recipe: Recipe) -> dict[str, Any]:
    """Return the values of a recipe by their dotted keys, without those that only describe it."""
    return {key: value for key, value in recipe.dotted().items() if key.partition(".")[0] not in _DESCRIPTIVE}
