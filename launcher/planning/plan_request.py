"""What `bigbatch plan` is asked, and the options that answer it."""

import re
from dataclasses import dataclass

from launcher.planning.gpus import gpu_named
from launcher.planning.memory_model import GIB
from launcher.planning.model_profile import ModelProfile, profile_model
from launcher.planning.plan import PlanOption, explain_no_fit, feasible_options
from launcher.planning.speeds import images_per_core
from launcher.planning.time_model import CPUS_PER_GPU, NETWORK, Hardware
from recipes.errors import UserError
from recipes.schema import Recipe

_LARGEST = 1e9  # in any unit of the options; no machine comes near it


@dataclass(frozen=True)
class PlanRequest:
    """The options of `bigbatch plan`; None means the GPU's usual value or an assumption.

    Attributes:
        gpu_memory: memory of one GPU, e.g. "80GiB".
        network: GB/s of a node.
        mtbf_hours: hours between failures of one GPU; None: failures are not considered.
        save_stall: seconds for which a save stops training.
    """

    gpus: int = 8
    gpus_per_node: int = 8
    gpu: str = "a100"
    gpu_memory: str | None = None
    tflops: float | None = None
    cpus_per_gpu: int = CPUS_PER_GPU
    network: float | None = None
    mtbf_hours: float | None = None
    save_stall: float = 5.0


@dataclass(frozen=True)
class Plan:
    """The options of a request, with what they were made from."""

    recipe: Recipe
    profile: ModelProfile
    hardware: Hardware
    options: list[PlanOption]


def plan_options(recipe: Recipe, request: PlanRequest | None = None) -> list[PlanOption]:
    """Return every way to run the recipe that fits the GPUs, the simplest first; `recommend` chooses one.

    Raises:
        UserError: nothing fits, or the recipe or the hardware is impossible.
    """
    return make_plan(recipe, request or PlanRequest()).options


def make_plan(recipe: Recipe, request: PlanRequest) -> Plan:
    """Return every way to run the recipe that fits the GPUs, with what the plan was made from.

    Raises:
        UserError: as in `plan_options`.
    """
    if request.gpus < 1 or request.gpus_per_node < 1:
        raise UserError("a plan needs at least one GPU: give gpus and gpus_per_node of 1 or more")
    for option in ("tflops", "network", "mtbf_hours", "save_stall"):
        value = getattr(request, option)
        if value is not None and not value < _LARGEST:
            raise UserError(f"--{option.replace('_', '-')} {value:g} is impossible: give less than {_LARGEST:g}")
    gpu = gpu_named(request.gpu)
    if request.tflops:
        gpu = gpu.with_tflops(request.tflops)
    memory = round(gpu.memory_gib * GIB) if request.gpu_memory is None else _bytes(request.gpu_memory)
    network = NETWORK if request.network is None else request.network * 1e9
    hardware = Hardware(
        request.gpus, request.gpus_per_node, memory, gpu, images_per_core(recipe), network, request.cpus_per_gpu
    )
    precision = gpu.precision_of(recipe)
    recipe = recipe.variant(engine={"precision": precision})
    profile = profile_model(recipe, precision)
    options = feasible_options(recipe, profile, hardware)
    if not options:
        raise UserError(explain_no_fit(recipe, profile, hardware))
    return Plan(recipe, profile, hardware, options)


def _bytes(text: str) -> int:
    """Return the bytes of a size such as "80GiB" or "80GB"; raise UserError if `text` is not one."""
    parts = re.fullmatch(r"\s*(\d{1,9}(?:\.\d+)?)\s*(GiB|GB|G)?\s*", text, re.IGNORECASE)
    if parts is None:
        raise UserError(f"--gpu-memory {text} is not a size: write it as 80GiB")
    return round(float(parts[1]) * (1e9 if (parts[2] or "").lower() == "gb" else GIB))
