"""`auto`: the engine and the micro-batch that the plan recommends for the GPUs at hand, where the user chose none.

Neither is part of the recipe's identity, so a run that resumes on other hardware chooses again and stays the same run.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from launcher.cut import LARGEST_UNPLANNED, Cut, cut_for_model
from launcher.planning.engine_rules import with_default_engine
from launcher.planning.gpus import gpu_named, gpu_of_device
from launcher.planning.memory_model import GIB
from launcher.planning.model_profile import UnpredictableModelError, profile_model
from launcher.planning.plan import explain_no_fit, explain_recommendation, feasible_options, recommend
from launcher.planning.speeds import images_per_core
from launcher.planning.time_model import Hardware
from launcher.workers import cpus_of_process
from launcher.world import this_process
from recipes.errors import UserError
from recipes.schema import Recipe


@dataclass(frozen=True)
class EngineChoice:
    """A recipe without "auto" in its engine (`precision` excepted), and the cut of its batch.

    Attributes:
        reason: one sentence that explains the choice; "" where the user chose the micro-batch and nothing was planned.
        step_seconds: predicted time of an optimizer step; None where nothing was planned.
    """

    recipe: Recipe
    cut: Cut
    reason: str
    step_seconds: float | None = None


def choose_engine(
    recipe: Recipe,
    classes: int,
    world_size: int,
    micro_batch: int | None,
    has_batch_norm: bool,
    hardware: Hardware | None,
    why_unplanned: str = "there is no GPU to plan for",
) -> EngineChoice:
    """Return the recipe with its engine settled, and the cut of its batch.

    Args:
        micro_batch: images per forward pass; None: the plan chooses.
        hardware: the GPUs to plan for; None: unknown GPUs or a CPU, so that the defaults are taken without a plan.
        why_unplanned: the reason that is given where `hardware` is None.

    Raises:
        UserError: the engine settings or the cut are impossible, or nothing fits; the message then says what would fit.
    """

    def unplanned(why: str) -> EngineChoice:
        note = "" if micro_batch is not None else f"at most {LARGEST_UNPLANNED} images at a time, because {why}"
        return EngineChoice(
            with_default_engine(recipe), cut_for_model(recipe, world_size, micro_batch, has_batch_norm), note
        )

    if hardware is None:
        return unplanned(why_unplanned)
    precision = hardware.gpu.precision_of(recipe)
    planned = recipe.variant(data={"classes": classes}, engine={"precision": precision})
    try:
        profile = profile_model(planned, precision)
    except UnpredictableModelError as error:
        return unplanned(str(error))
    options = feasible_options(planned, profile, hardware, micro_batch)
    if not options:
        raise UserError(explain_no_fit(planned, profile, hardware, micro_batch))
    option = recommend(options)
    # The precision stays as the recipe says it: "auto" is settled by the device that trains, not by the plan.
    chosen = recipe.variant(engine=option.recipe.engine.model_dump() | {"precision": recipe.engine.precision})
    return EngineChoice(chosen, option.cut, explain_recommendation(option, options), option.step_seconds)


def choose_engine_here(
    recipe: Recipe, classes: int, accelerator: Accelerator, micro_batch: int | None, has_batch_norm: bool
) -> EngineChoice:
    """Return `choose_engine` for the GPUs of all ranks; rank 0 plans, and the other ranks receive its choice.

    Raises:
        UserError: as `choose_engine`, on every rank.
    """
    hardware = visible_hardware(recipe, accelerator.num_processes) if _is_open(recipe, micro_batch) else None
    if hardware:
        # Every rank has the same share of the batch, so the GPU with the least free memory decides for all.
        free = accelerator.gather(torch.tensor([hardware.memory], device=accelerator.device))
        hardware = replace(hardware, memory=int(free.min()))
    return _broadcast_from_main(
        accelerator,
        lambda: choose_engine(recipe, classes, accelerator.num_processes, micro_batch, has_batch_norm, hardware),
    )


def visible_hardware(recipe: Recipe, processes: int) -> Hardware | None:
    """Return `processes` GPUs of this process's kind, with the memory that is free on it now; None on a CPU."""
    if not torch.cuda.is_available():
        return None
    world = this_process()
    per_node = world.local_size if world.is_launched else processes
    free, _ = torch.cuda.mem_get_info()
    # The engine asks the same, so that "auto" is planned at the precision that is trained.
    has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    gpu = replace(gpu_of_device(torch.cuda.get_device_name()), has_bf16=has_bf16)
    return Hardware(processes, per_node, free, gpu, images_per_core(recipe), cpus_per_gpu=cpus_of_process())


def hardware_of_cluster(
    recipe: Recipe, gpus: int, per_node: int, kind: str | None, memory_gib: float | None, cpus_per_gpu: int
) -> Hardware | None:
    """Return the GPUs that a cluster's profile describes; None where it gives neither their kind nor their memory.

    Raises:
        UserError: the kind is unknown.
    """
    if kind is None and memory_gib is None:
        return None
    gpu = gpu_named(kind) if kind else gpu_of_device("")
    memory = round((memory_gib or gpu.memory_gib) * GIB)
    return Hardware(gpus, per_node, memory, gpu, images_per_core(recipe), cpus_per_gpu=cpus_per_gpu)


def _is_open(recipe: Recipe, micro_batch: int | None) -> bool:
    engine = recipe.engine
    return micro_batch is None or "auto" in (engine.zero, engine.offload, engine.checkpoint_activations)


def _broadcast_from_main(accelerator: Accelerator, plan: Callable[[], EngineChoice]) -> EngineChoice:
    """Call `plan` on rank 0 and return its result, or raise its UserError, on every rank."""
    found: EngineChoice | UserError | None = None
    if accelerator.is_main_process:
        try:
            found = plan()
        except UserError as error:  # sent on as a value: ranks that wait in the broadcast would hang otherwise
            found = error
    found = broadcast_object_list([found])[0]
    if isinstance(found, UserError):
        raise found
    assert found is not None
    return found
