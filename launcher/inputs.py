"""The shards of a recipe, and how many processes prepare images from them."""

import os
from pathlib import Path

from data.shards import ShardSet
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
    rank, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    try:
        shards.check_spots(rank, processes)  # together the processes look at every shard once
    except UserError as error:
        raise UserError(str(error) if rank == 0 else f"[rank {rank}] {error}") from None
    return shards


def check_names_shards(recipe: Recipe) -> None:
    """Raises UserError where the recipe leaves its shards open."""
    if recipe.data.path is None:
        raise UserError(f"recipe {recipe.name} names no shards: add --data FOLDER, a folder made by `bigbatch shard SOURCE FOLDER`")


def default_workers() -> int:
    """Loader processes per training process: the CPUs divided among the processes of this machine, less the trainer's own."""
    return loader_processes(cpus_of_process())


def cpus_of_process() -> int:
    """The CPUs of this machine that are left to us, divided among the training processes on it."""
    return max(1, len(os.sched_getaffinity(0)) // int(os.environ.get("LOCAL_WORLD_SIZE", 1)))


def loader_processes(cpus: int) -> int:
    """How many processes prepare images where a training process has so many CPUs, one of which is its own."""
    return max(1, min(16, cpus - 1))
