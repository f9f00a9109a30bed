"""What can be known of a run before its job waits in the queue."""

from collections.abc import Iterable
from pathlib import Path

import torch

from data.storage import is_url
from launcher.cut import Cut, cut_for_model
from launcher.engine_choice import choose_engine
from launcher.inputs import open_shards
from launcher.memory_model import GIB, predict_memory
from launcher.model_needs import model_needs
from launcher.planned_runs import Run
from models import batch_norm
from models.build import build
from recipes.errors import UserError
from recipes.schedule import Timetable
from recipes.schema import Recipe
from slurm.cluster import Cluster
from slurm.job import Resources
from slurm.state import job_states
from slurm.submit import check_path


def check_recipe(run: Run, resources: Resources, micro_batch: int | None, follows: bool, cluster: Cluster) -> None:
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
    Timetable(recipe, len(shards.split("train")))
    possible = cuts(recipe, resources, micro_batch, len(shards.classes))
    chosen = choose_engine(recipe)
    if cluster.gpu_memory_gib:
        _check_memory(chosen, possible, len(shards.classes), cluster.gpu_memory_gib)
    weights = recipe.model.weights
    if weights not in (None, "timm") and not follows and not Path(weights).exists():
        raise UserError(f"there are no weights {weights}: model.weights is a run directory, a weights file, or timm")


def cuts(recipe: Recipe, resources: Resources, micro_batch: int | None, classes: int) -> list[Cut]:
    """The cut of the batch for every number of nodes that the job may get.

    Raises:
        UserError: the model does not exist, or one of the cuts is impossible.
    """
    with torch.device("meta"):
        model = build(recipe, classes)
    has_batch_norm = batch_norm.attach(model, recipe.batch.statistics_size) is not None
    sizes = range(resources.min_nodes, resources.max_nodes + 1)
    return [cut_for_model(recipe, nodes * resources.tasks_per_node, micro_batch, has_batch_norm) for nodes in sizes]


def _check_memory(recipe: Recipe, possible: list[Cut], classes: int, gpu_memory_gib: float) -> None:
    """Refuse a recipe that is predicted to need more than a GPU has, at any of the cuts that the job may get."""
    precision = "bf16" if recipe.engine.precision == "auto" else recipe.engine.precision
    recipe = recipe.model_copy(update={"data": recipe.data.model_copy(update={"classes": classes})})
    needs = model_needs(recipe, precision)
    for cut in possible:
        gib = predict_memory(recipe, needs, cut).peak / GIB
        if gib > gpu_memory_gib:
            raise UserError(
                f"{recipe.name} needs {gib:.1f} GiB a GPU with {cut.micro_batch} images at a time on {cut.world_size} GPUs, and the profile says "
                f"that one has {gpu_memory_gib:g}: a smaller --micro-batch, engine.zero or engine.checkpoint_activations=true may help, and "
                f"`bigbatch plan {recipe.name} --gpus {cut.world_size} --gpu-memory {gpu_memory_gib:g}GiB` shows what fits"
            )


def check_free(steps: Iterable[list[Run]]) -> None:
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
            raise UserError(f"{path} has job {state.job_id} in the queue ({state.name}): `bigbatch cancel {path}` first")
        run.directory.check_recipe(run.recipe)
