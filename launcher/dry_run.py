"""`bigbatch train --dry-run`: what would run, without weights or a GPU; shards are checked where they are named."""

import json
import os

import torch

from launcher.automatic import choose, machines_of
from launcher.deepspeed_config import deepspeed_config
from launcher.engine_choice import engine_as_launched
from launcher.inputs import open_shards
from launcher.processes import is_main_process
from models import batch_norm
from models.build import build
from recipes.errors import UserError
from recipes.schedule import Timetable
from recipes.schema import Recipe


def print_dry_run(recipe: Recipe, processes: int | None, micro_batch: int | None) -> None:
    """Print the cut of the recipe's batch and, where the engine is ZeRO, the JSON that DeepSpeed gets.

    Args:
        processes: None: as many as a launcher started, or one per GPU of this machine.

    Raises:
        UserError: the recipe's model, engine or cut is impossible; or its shards do not fit it.
    """
    recipe = engine_as_launched(recipe)
    classes = recipe.data.classes
    if recipe.data.path:
        shards = open_shards(recipe)
        classes = len(shards.classes)
        Timetable(recipe, len(shards.split("train")))  # refuses a batch larger than the data
    if classes is None:
        raise UserError(f"recipe {recipe.name} leaves the number of classes to the shards: add --data FOLDER or data.classes=NUMBER")
    with torch.device("meta"):
        model = build(recipe, classes)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    has_batch_norm = batch_norm.attach(model, recipe.batch.statistics_size) is not None
    processes = processes or int(os.environ.get("WORLD_SIZE", max(1, torch.cuda.device_count())))
    choice = choose(recipe, classes, processes, micro_batch, has_batch_norm, machines_of(recipe, processes))
    recipe, cut = choice.recipe, choice.cut
    if not is_main_process():
        return
    print(f"{recipe.name}: {recipe.model.name}, {parameters:,} parameters, {cut}")
    if choice.reason:
        print(f"cut: {choice.reason}")
    if recipe.engine.zero:
        print(json.dumps(deepspeed_config(recipe, cut, parameters), indent=2))
