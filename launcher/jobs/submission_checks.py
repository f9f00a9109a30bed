"""What can be known of a run before its job waits in the queue."""

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch

from data.reading.storage import is_url
from launcher.jobs.planned_runs import PlannedRun
from launcher.planning.auto_engine import EngineChoice, choose_engine, hardware_of_cluster
from launcher.recipe_shards import open_shards
from models.prepared import prepare_model
from recipes.errors import UserError
from recipes.schedule import StepSchedule
from recipes.schema import Recipe
from slurm.cluster import Cluster
from slurm.job import Resources
from slurm.state import job_states
from slurm.submit import check_path


def check_recipe(
    run: PlannedRun, resources: Resources, micro_batch: int | None, follows: bool, cluster: Cluster
) -> None:
    """Refuse a run whose recipe cannot be trained on its shards with these resources.

    Args:
        follows: it starts from weights that a job before it will make.

    Raises:
        UserError: shards, classes, schedule, engine, model, cut, memory or weights are not right.
    """
    recipe = run.recipe
    if cluster.stage and recipe.data.path and is_url(recipe.data.path):
        raise UserError(
            f"the cluster's profile stages shards, and {recipe.data.path} is a URL: give data.cache={cluster.stage} and leave stage out"
        )
    shards = open_shards(recipe)
    StepSchedule(recipe, len(shards.split("train")))
    choices(recipe, resources, micro_batch, len(shards.classes), cluster)
    weights = recipe.model.weights
    if weights not in (None, "timm") and not follows and not Path(weights).exists():
        raise UserError(f"there are no weights {weights}: model.weights is a run directory, a weights file, or timm")


def choices(
    recipe: Recipe, resources: Resources, micro_batch: int | None, classes: int, cluster: Cluster
) -> list[EngineChoice]:
    """The engine and the cut of the batch for every number of nodes that the job may get.

    Raises:
        UserError: the model does not exist, one of the cuts is impossible, or does not fit the GPUs of the profile in any way.
    """
    with torch.device("meta"):
        has_batch_norm = prepare_model(recipe, classes).has_batch_norm
    tasks, hardware, why = resources.tasks_per_node, None, "there is no GPU to plan for"
    if resources.gpus_per_node:
        hardware = hardware_of_cluster(
            recipe, tasks, tasks, cluster.gpu, cluster.gpu_memory_gib, resources.cpus_per_task
        )
        why = "the kind of the GPUs (gpu in the cluster's profile) is not known here, so the job plans when it has them"
    return [
        choose_engine(
            recipe, classes, processes, micro_batch, has_batch_norm, hardware and replace(hardware, gpus=processes), why
        )
        for processes in (nodes * tasks for nodes in range(resources.min_nodes, resources.max_nodes + 1))
    ]


def check_free(steps: Iterable[list[PlannedRun]]) -> None:
    """Refuse run directories that hold another recipe, or whose job is in the queue.

    Raises:
        UserError: the first that does.
    """
    runs = [run for runs in steps for run in runs]
    states = job_states([run.job_folder for run in runs])
    for run in runs:
        state = states.get(run.job_folder)
        path = run.directory.path
        check_path(run.job_folder)
        if state and state.is_active:
            raise UserError(
                f"{path} has job {state.job_id} in the queue ({state.name}): `bigbatch cancel {path}` first"
            )
        run.directory.check_recipe(run.recipe)
