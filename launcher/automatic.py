"""`auto`: the engine and the micro-batch where the user names none, which is the recommended row of the plan for the GPUs at hand.

Neither is part of the recipe's identity, so a restart on other hardware chooses anew and the run stays the same.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from launcher.cut import LARGEST_UNPLANNED, Cut, cut_for_model
from launcher.engine_choice import plainest_engine
from launcher.gpus import gpu_named, gpu_of_device
from launcher.inputs import cpus_of_process
from launcher.memory_model import GIB
from launcher.model_needs import Unpredictable, model_needs
from launcher.plan import Machines, feasible_rows, nearest, reason, recommended
from launcher.speeds import images_per_core
from recipes.errors import UserError
from recipes.schema import Recipe


@dataclass(frozen=True)
class Choice:
    """A recipe whose engine is chosen, the cut of its batch, why so in one sentence ("" where the user chose), and a step's time."""

    recipe: Recipe
    cut: Cut
    reason: str
    step_seconds: float | None = None  # predicted; None where nothing was planned


def choose(
    recipe: Recipe,
    classes: int,
    world_size: int,
    micro_batch: int | None,
    has_batch_norm: bool,
    machines: Machines | None,
    why_unplanned: str = "there is no GPU to plan for",
) -> Choice:
    """Fill in what the recipe's `engine` and `micro_batch` leave open.

    Args:
        machines: what it will run on; None: not known, or not GPUs. Then nothing is predicted, and `why_unplanned` is said.

    Raises:
        UserError: the engine or the cut is impossible, or nothing fits the GPUs; with what would.
    """

    def plainly(why: str) -> Choice:
        said = "" if micro_batch is not None else f"at most {LARGEST_UNPLANNED} images at a time: {why}"
        return Choice(plainest_engine(recipe), cut_for_model(recipe, world_size, micro_batch, has_batch_norm), said)

    if machines is None:
        return plainly(why_unplanned)
    precision = machines.gpu.precision_of(recipe)
    planned = recipe.model_copy(
        update={
            "data": recipe.data.model_copy(update={"classes": classes}),
            "engine": recipe.engine.model_copy(update={"precision": precision}),
        }
    )
    try:
        needs = model_needs(planned, precision)
    except Unpredictable as error:
        return plainly(str(error))
    rows = feasible_rows(planned, needs, machines, micro_batch)
    if not rows:
        raise UserError(nearest(planned, needs, machines, micro_batch))
    row = recommended(rows)
    engine = row.recipe.engine.model_copy(update={"precision": recipe.engine.precision})
    return Choice(recipe.model_copy(update={"engine": engine}), row.cut, reason(row, rows), row.step_seconds)


def choose_here(recipe: Recipe, classes: int, accelerator: Accelerator, micro_batch: int | None, has_batch_norm: bool) -> Choice:
    """`choose` for the GPUs of these processes; the main process plans, and all take its choice.

    Raises:
        UserError: as `choose`.
    """
    machines = machines_of(recipe, accelerator.num_processes) if _is_open(recipe, micro_batch) else None
    if machines:
        free = accelerator.gather(torch.tensor([machines.memory], device=accelerator.device))
        machines = replace(machines, memory=int(free.min()))

    def chosen() -> Choice:
        return choose(recipe, classes, accelerator.num_processes, micro_batch, has_batch_norm, machines)

    return _from_main_process(accelerator, chosen)


def machines_of(recipe: Recipe, processes: int) -> Machines | None:
    """As many GPUs of this process's kind, each with what is free on it now; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    per_node = int(os.environ.get("LOCAL_WORLD_SIZE", processes))
    free, _ = torch.cuda.mem_get_info()
    gpu = gpu_of_device(torch.cuda.get_device_name(), recipe)
    return Machines(processes, per_node, free, gpu, images_per_core(recipe), cpus_per_gpu=cpus_of_process())


def machines_named(
    recipe: Recipe, gpus: int, per_node: int, kind: str | None, memory_gib: float | None, cpus_per_gpu: int
) -> Machines | None:
    """The GPUs of a profile; None where it tells neither their kind nor their memory.

    Raises:
        UserError: there is no such kind.
    """
    if kind is None and memory_gib is None:
        return None
    gpu = gpu_named(kind, recipe) if kind else gpu_of_device("", recipe)
    memory = round((memory_gib or gpu.memory_gib) * GIB)
    return Machines(gpus, per_node, memory, gpu, images_per_core(recipe), cpus_per_gpu=cpus_per_gpu)


def _is_open(recipe: Recipe, micro_batch: int | None) -> bool:
    engine = recipe.engine
    return micro_batch is None or "auto" in (engine.zero, engine.offload, engine.checkpoint_activations)


def _from_main_process(accelerator: Accelerator, work: Callable[[], Choice]) -> Choice:
    found: Choice | UserError | None = None
    if accelerator.is_main_process:
        try:
            found = work()
        except UserError as error:
            found = error
    found = broadcast_object_list([found])[0]
    if isinstance(found, UserError):
        raise found
    return found
