"""The shards of a recipe: opened, and checked against what the recipe says of them."""

from pathlib import Path

from data.reading.shards import ShardSet
from launcher.world import this_process
from recipes.errors import UserError
from recipes.schema import Recipe


def open_shards(recipe: Recipe, copy: Path | None = None) -> ShardSet:
    """Open the recipe's shards, or a copy of them.

    Raises:
        UserError: no path is named, there are none, they changed, or they have another number of classes.
    """
    check_names_shards(recipe)
    shards = ShardSet.open(copy or recipe.data.path, recipe.data.cache, int(recipe.data.cache_gib * 2**30))
    if recipe.data.classes not in (None, len(shards.classes)):
        raise UserError(
            f"{recipe.data.path} has {len(shards.classes)} classes and recipe {recipe.name} is for {recipe.data.classes}: "
            f"other shards, or data.classes={len(shards.classes)}"
        )
    world = this_process()
    try:
        shards.check_sampled_checksums(world.rank, world.size)  # together the processes look at every shard once
    except UserError as error:
        raise UserError(str(error) if world.is_main else f"[rank {world.rank}] {error}") from None
    return shards


def check_names_shards(recipe: Recipe) -> None:
    """Raises UserError where the recipe leaves its shards open."""
    if recipe.data.path is None:
        raise UserError(
            f"recipe {recipe.name} names no shards: add --data FOLDER, a folder made by `bigbatch shard SOURCE FOLDER`"
        )
