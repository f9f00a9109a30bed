"""The checks of `bigbatch submit` on recipes and run directories, before a job waits in the queue."""

import re
import shlex
from collections.abc import Iterable
from dataclasses import replace

import torch

from data.reading.storage import is_url
from launcher.jobs.planned_runs import PlannedRun, SubmitOptions
from launcher.planning.auto_engine import EngineChoice, choose_engine, hardware_of_cluster
from launcher.recipe_shards import open_shards
from launcher.training.audit import NEEDS_ALL_WEIGHTS
from launcher.training.dry_run import check_weights
from launcher.training.trackers import check_trackers
from launcher.training.user_code_checks import check_code_is_found
from models.prepared import prepare_model
from recipes.errors import UserError
from recipes.schedule import StepSchedule
from recipes.schema import Recipe
from slurm.cluster import LOCAL, Cluster
from slurm.job import Resources
from slurm.state import NO_ANSWER, ask_slurm, job_states
from slurm.submit import check_path


def check_recipe(
    run: PlannedRun, resources: Resources, options: SubmitOptions, follows: bool, cluster: Cluster
) -> None:
    """Refuse a run whose recipe cannot be trained on its shards with these resources.

    Args:
        follows: an earlier job of the chain will write the weights that the run starts from.

    Raises:
        UserError: the shards, classes, schedule, engine, model, cut, memory or weights are wrong.
    """
    recipe = run.recipe
    if cluster.stage and recipe.data.path and is_url(recipe.data.path):
        raise UserError(
            f"the cluster's profile stages shards, and {recipe.data.path} is a URL: "
            f"give data.cache={cluster.stage} and remove `stage` from the profile"
        )
    check_code_is_found(recipe)
    check_trackers(recipe)
    shards = open_shards(recipe)
    StepSchedule(recipe, len(shards.split("train")))
    choices = choices_by_nodes(recipe, resources, options.micro_batch, len(shards.classes), cluster)
    if options.audit:
        _check_audit(choices)
    if not follows:
        check_weights(recipe, list(shards.classes), run.directory)


def _check_audit(choices: list[EngineChoice]) -> None:
    """Refuse --audit where no rank can repeat the part of another one.

    Raises:
        UserError: there is one process only, or ZeRO-3.
    """
    if choices[-1].cut.world_size == 1:
        raise UserError("--audit lets processes check each other, and this job has only one: leave --audit out")
    if any(choice.recipe.engine.zero == 3 for choice in choices):
        raise UserError(NEEDS_ALL_WEIGHTS)


def choices_by_nodes(
    recipe: Recipe, resources: Resources, micro_batch: int | None, classes: int, cluster: Cluster
) -> list[EngineChoice]:
    """Return the engine and the cut of the batch for every number of nodes that the job may get, fewest first.

    Raises:
        UserError: the model does not exist, a cut is impossible, or no option fits the memory of the profile's GPUs.
    """
    with torch.device("meta"):  # the modules alone answer the question; their values would take seconds to draw
        has_batch_norm = prepare_model(recipe, classes).has_batch_norm
    tasks, hardware, why = resources.tasks_per_node, None, "there is no GPU to plan for"
    if resources.gpus_per_node:
        hardware = hardware_of_cluster(
            recipe, tasks, tasks, cluster.gpu, cluster.gpu_memory_gib, resources.cpus_per_task
        )
        why = "the profile does not name its GPUs (key gpu), so the job plans once it runs on them"
    return [
        choose_engine(
            recipe, classes, processes, micro_batch, has_batch_norm, hardware and replace(hardware, gpus=processes), why
        )
        for processes in (nodes * tasks for nodes in range(resources.min_nodes, resources.max_nodes + 1))
    ]


def check_run_directories(steps: Iterable[list[PlannedRun]]) -> None:
    """Refuse run directories that hold another recipe, or whose job is in the queue.

    Raises:
        UserError: the first run directory that does, and why.
    """
    runs = [run for runs in steps for run in runs]
    states = job_states([run.job_folder for run in runs])
    for run in runs:
        state = states.get(run.job_folder)
        path = run.directory.path
        check_path(run.job_folder)
        if state and state.name == NO_ANSWER:
            raise UserError(
                f"{path} was submitted as job {state.job_id}, which may still be in the queue: {state.note}"
            )
        if state and state.is_active:
            raise UserError(
                f"{path} has job {state.job_id} in the queue ({state.name}): "
                f"`bigbatch cancel {shlex.quote(str(path))}` first"
            )
        run.directory.check_can_be_made()
        run.directory.check_recipe(run.recipe)


def check_predecessor(job_id: str, cluster_name: str) -> None:
    """Refuse to wait for a job that SLURM does not know, or that can no longer succeed.

    SLURM itself accepts an unknown job, and starts at once.

    Raises:
        UserError: the job does not exist or failed, or SLURM does not answer.
    """
    if cluster_name == LOCAL:
        raise UserError("--after waits for a job of SLURM, which --cluster local does without: leave one of them out")
    if not re.fullmatch(r"\d+(_\d+)?", job_id):
        raise UserError(f"--after {job_id} is not a job: give its id, as `bigbatch runs` and squeue show it")
    known = ask_slurm([job_id]) if "_" in job_id else ask_slurm([job_id]) or ask_slurm([f"{job_id}_0"])
    if not known:
        raise UserError(f"--after {job_id}: SLURM knows no job {job_id}, see `bigbatch runs` or squeue for the ids")
    [state] = known.values()
    if not state.is_active and state.state != "COMPLETED":
        raise UserError(f"--after {job_id}: that job has ended as {state.state}, so this one would never start")
