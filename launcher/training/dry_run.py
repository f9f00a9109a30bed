"""`bigbatch train --dry-run`: check a recipe and print what would run, without a GPU."""

import json

import torch

from data.reading.class_counts import class_notes
from launcher.checkpoints.checkpoint import saved_steps
from launcher.engines.deepspeed_config import deepspeed_config
from launcher.engines.disk_offload import check_disk_offload
from launcher.evaluation.initial_weights import check_initial_weights
from launcher.planning.accelerate_config import with_accelerate_config
from launcher.planning.auto_engine import choose_engine, visible_hardware
from launcher.recipe_shards import open_shards
from launcher.runs.run_directory import RunDirectory
from launcher.training.trackers import check_trackers
from launcher.training.user_code_checks import check_code_is_found
from launcher.world import this_process
from models.prepared import prepare_model
from recipes.errors import UserError
from recipes.schedule import StepSchedule
from recipes.schema import Recipe


def print_dry_run(recipe: Recipe, run: RunDirectory, processes: int | None, micro_batch: int | None) -> None:
    """Print the cut of the recipe's batch and, with ZeRO, the JSON that DeepSpeed gets.

    Args:
        processes: None: as many as a launcher started, or one per GPU of this machine.

    Raises:
        UserError: the recipe's model, engine or cut is impossible, its shards or weights do not fit it, the run
            directory holds another run, or this machine lacks what an offload to a disk needs.
    """
    check_code_is_found(recipe)
    check_trackers(recipe)
    recipe = with_accelerate_config(recipe)
    classes = recipe.data.classes
    names = [str(number) for number in range(classes or 0)]
    if recipe.data.path:
        shards = open_shards(recipe)
        names, classes = list(shards.classes), len(shards.classes)
        StepSchedule(recipe, len(shards.split("train")))  # raises where the batch is larger than the data
    if classes is None:
        raise UserError(
            f"recipe {recipe.name} leaves the number of classes to the shards: add --data FOLDER or data.classes=NUMBER"
        )
    run.check_can_be_made()
    run.check_recipe(recipe)
    notes = check_weights(recipe, names, run)
    with torch.device("meta"):
        model = prepare_model(recipe, classes)
    parameters = sum(parameter.numel() for parameter in model.module.parameters())
    world = this_process()
    processes = processes or (world.size if world.is_launched else max(1, torch.cuda.device_count()))
    hardware = visible_hardware(recipe, processes)
    choice = choose_engine(recipe, classes, processes, micro_batch, model.has_batch_norm, hardware)
    recipe, cut = choice.recipe, choice.cut
    check_disk_offload(recipe)
    if not world.is_main:
        return
    if recipe.data.path:
        for note in class_notes(shards.classes, {name: split.per_class for name, split in shards.splits.items()}):
            print(f"data: {note}")
    for note in notes:
        print(f"weights: {note}")
    print(f"{recipe.name}: {recipe.model.name}, {parameters:,} parameters, {cut}")
    if choice.reason:
        print(f"cut: {choice.reason}")
    if recipe.engine.zero:
        print(json.dumps(deepspeed_config(recipe, cut, parameters), indent=2))


def check_weights(recipe: Recipe, classes: list[str], run: RunDirectory) -> list[str]:
    """Check `model.weights` as the start of the run does, and return notes for the user.

    A run that resumes from a checkpoint of its own does not read the weights again.

    Raises:
        UserError: the weights cannot be found or do not fit.
    """
    return [] if saved_steps(run.checkpoints) else check_initial_weights(recipe, classes)
