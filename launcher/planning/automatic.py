"""`auto`: the engine and the micro-batch where the user names none, which is the recommended option of the plan for the GPUs at hand.

Neither is part of the recipe's identity, so a restart on other hardware chooses anew and the run stays the same.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from launcher.cut import LARGEST_UNPLANNED, Cut, cut_for_model
from launcher.planning.engine_choice import with_default_engine
from launcher.planning.gpus import gpu_named, gpu_of_device
from launcher.planning.memory_model import GIB
from launcher.planning.model_profile import Unpredictable, profile_model
from launcher.planning.plan import Hardware, feasible_options, nearest, reason, recommended
from launcher.planning.speeds import images_per_core
from launcher.workers import cpus_of_process
from launcher.world import this_process
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
    hardware: Hardware | None,
    why_unplanned: str = "there is no GPU to plan for",
) -> Choice:
    """Fill in what the recipe's `engine` and `micro_batch` leave open.

    Args:
        hardware: what it will run on; None: not known, or not GPUs. Then nothing is predicted, and `why_unplanned` is said.

    Raises:
        UserError: the engine or the cut is impossible, or nothing fits the GPUs; with what would.
    """

    def plainly(why: str) -> Choice:
        said = "" if micro_batch is not None else f"at most {LARGEST_UNPLANNED} images at a time: {why}"
        return Choice(with_default_engine(recipe), cut_for_model(recipe, world_size, micro_batch, has_batch_norm), said)

    if hardware is None:
        return plainly(why_unplanned)
    precision = hardware.gpu.precision_of(recipe)
    planned = recipe.variant(data={"classes": classes}, engine={"precision": precision})
    try:
        profile = profile_model(planned, precision)
    except Unpredictable as error:
        return plainly(str(error))
    options = feasible_options(planned, profile, hardware, micro_batch)
    if not options:
        raise UserError(nearest(planned, profile, hardware, micro_batch))
    option = recommended(options)
    chosen = recipe.variant(engine=option.recipe.engine.model_dump() | {"precision": recipe.engine.precision})
    return Choice(chosen, option.cut, reason(option, options), option.step_seconds)


def choose_here(
    recipe: Recipe, classes: int, accelerator: Accelerator, micro_batch: int | None, has_batch_norm: bool
) -> Choice:
    """`choose` for the GPUs of these processes; the main process plans, and all take its choice.

    Raises:
        UserError: as `choose`.
    """
    hardware = hardware_here(recipe, accelerator.num_processes) if _is_open(recipe, micro_batch) else None
    if hardware:
        free = accelerator.gather(torch.tensor([hardware.memory], device=accelerator.device))
        hardware = replace(hardware, memory=int(free.min()))

    def chosen() -> Choice:
        return choose(recipe, classes, accelerator.num_processes, micro_batch, has_batch_norm, hardware)

    return _from_main_process(accelerator, chosen)


def hardware_here(recipe: Recipe, processes: int) -> Hardware | None:
    """As many GPUs of this process's kind, each with what is free on it now; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    world = this_process()
    per_node = world.local_size if world.is_launched else processes
    free, _ = torch.cuda.mem_get_info()
    gpu = gpu_of_device(torch.cuda.get_device_name(), recipe)
    return Hardware(processes, per_node, free, gpu, images_per_core(recipe), cpus_per_gpu=cpus_of_process())


def hardware_of_profile(
    recipe: Recipe, gpus: int, per_node: int, kind: str | None, memory_gib: float | None, cpus_per_gpu: int
) -> Hardware | None:
    """The GPUs of a profile; None where it tells neither their kind nor their memory.

    Raises:
        UserError: there is no such kind.
    """
    if kind is None and memory_gib is None:
        return None
    gpu = gpu_named(kind, recipe) if kind else gpu_of_device("", recipe)
    memory = round((memory_gib or gpu.memory_gib) * GIB)
    return Hardware(gpus, per_node, memory, gpu, images_per_core(recipe), cpus_per_gpu=cpus_per_gpu)


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
