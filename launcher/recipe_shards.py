"""Opens the shards of a recipe and checks them against it."""

from pathlib import Path

from data.reading.shards import ShardSet
from launcher.world import this_process
from recipes.errors import UserError
from recipes.schema import Recipe


def open_shards(recipe: Recipe, copy: Path | None = None) -> ShardSet:
    """Return the recipe's shards after a check of sampled checksums.

    Args:
        recipe: names the shards in `data.path`.
        copy: folder with a copy of the shards to open instead; None: open the shards themselves.

    Raises:
        UserError: the recipe names no shards, or they are missing, changed, or of another number of classes.
    """
    check_names_shards(recipe)
    assert recipe.data.path is not None
    shards = ShardSet.open(copy or recipe.data.path, recipe.data.cache, int(recipe.data.cache_gib * 2**30))
    if recipe.data.classes not in (None, len(shards.classes)):
        raise UserError(
            f"{recipe.data.path} has {len(shards.classes)} classes and recipe {recipe.name} is for "
            f"{recipe.data.classes}: give other shards, or data.classes={len(shards.classes)}"
        )
    world = this_process()
    try:
        shards.check_sampled_checksums(world.rank, world.size)  # the ranks divide the shards among themselves
    except UserError as error:
        raise UserError(str(error) if world.is_main else f"[rank {world.rank}] {error}") from None
    return shards


def planned_images(recipe: Recipe) -> int | None:
    """Return the number of training images to plan with: of the recipe's shards, or `data.train_images` without any.

    Raises:
        UserError: the recipe names shards that `open_shards` refuses.
    """
    if recipe.data.path is None:
        return recipe.data.train_images
    return len(open_shards(recipe).split("train"))


def check_names_shards(recipe: Recipe) -> None:
    """Check that the recipe says where its shards are.

    Raises:
        UserError: it does not.
    """
    if recipe.data.path is None:
        raise UserError(
            f"recipe {recipe.name} names no shards: add --data FOLDER, a folder made by `bigbatch shard SOURCE FOLDER`"
        )
