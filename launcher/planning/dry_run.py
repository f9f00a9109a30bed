"""`bigbatch train --dry-run`: check a recipe and print what would run, without a GPU."""

import json

import torch

from data.reading.class_counts import class_notes
from launcher.engines.deepspeed_config import deepspeed_config
from launcher.planning.accelerate_config import with_accelerate_config
from launcher.planning.auto_engine import choose_engine, visible_hardware
from launcher.recipe_shards import open_shards
from launcher.world import this_process
from models.prepared import prepare_model
from recipes.errors import UserError
from recipes.schedule import StepSchedule
from recipes.schema import Recipe


def print_dry_run(recipe: Recipe, processes: int | None, micro_batch: int | None) -> None:
    """Print the cut of the recipe's batch and, with ZeRO, the JSON that DeepSpeed gets.

    Args:
        processes: None: as many as a launcher started, or one per GPU of this machine.

    Raises:
        UserError: the recipe's model, engine or cut is impossible, or its shards do not fit it.
    """
    recipe = with_accelerate_config(recipe)
    classes = recipe.data.classes
    if recipe.data.path:
        shards = open_shards(recipe)
        classes = len(shards.classes)
        StepSchedule(recipe, len(shards.split("train")))  # raises where the batch is larger than the data
    if classes is None:
        raise UserError(
            f"recipe {recipe.name} leaves the number of classes to the shards: add --data FOLDER or data.classes=NUMBER"
        )
    with torch.device("meta"):
        model = prepare_model(recipe, classes)
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    world = this_process()
    processes = processes or (world.size if world.is_launched else max(1, torch.cuda.device_count()))
    hardware = visible_hardware(recipe, processes)
    choice = choose_engine(recipe, classes, processes, micro_batch, model.has_batch_norm, hardware)
    recipe, cut = choice.recipe, choice.cut
    if not world.is_main:
        return
    if recipe.data.path:
        for note in class_notes(shards.classes, {name: split.per_class for name, split in shards.splits.items()}):
            print(f"data: {note}")
    print(f"{recipe.name}: {recipe.model.name}, {parameters:,} parameters, {cut}")
    if choice.reason:
        print(f"cut: {choice.reason}")
    if recipe.engine.zero:
        print(json.dumps(deepspeed_config(recipe, cut, parameters), indent=2))
