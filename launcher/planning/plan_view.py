"""`bigbatch plan` as a person, or a script, reads it."""

import json
import math
import re
import shlex
import sys
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from launcher.planning.checkpoint_interval import best_interval, goodput
from launcher.planning.gpus import gpu_named
from launcher.planning.memory_model import GIB
from launcher.planning.model_profile import ModelProfile, profile_model
from launcher.planning.plan import (
    CPUS_PER_GPU,
    NETWORK,
    Hardware,
    PlanOption,
    feasible_options,
    nearest,
    reason,
    recommended,
)
from launcher.planning.speeds import images_per_core
from recipes.errors import UserError
from recipes.schedule import StepSchedule
from recipes.schema import Recipe

_PIPED_WIDTH = 200
_RESTART = 300.0  # seconds from a failure to training again: queue, start, read; assumed
_PARTS = ("parameters", "gradients", "optimizer", "ema", "activations", "engine", "allowance", "peak")
_MEMORY = "Memory is traced and counted, but for an allowance of 6% and 1 GiB that no GPU has confirmed."


@dataclass(frozen=True)
class PlanRequest:
    """What `bigbatch plan` is asked; None: what is usual of the GPU, or assumed."""

    gpus: int
    gpus_per_node: int
    gpu: str
    gpu_memory: str | None = None  # e.g. "80GiB"
    tflops: float | None = None
    cpus_per_gpu: int = CPUS_PER_GPU
    network: float | None = None  # GB/s of a node
    mtbf_hours: float | None = None  # between failures of one GPU; None: failures are left out
    save_stall: float = 5.0  # seconds


def print_plan(recipe: Recipe, asked: PlanRequest, named: list[str], as_json: bool) -> None:
    """Print the ways that fit, the recommended one and why.

    Args:
        named: the recipe and the changes to it, as they were given.

    Raises:
        UserError: nothing fits (and what comes nearest), or the recipe or the hardware is impossible.
    """
    gpu = gpu_named(asked.gpu, recipe)
    if asked.tflops:
        gpu = gpu.reaching(asked.tflops)
    memory = round(gpu.memory_gib * GIB) if asked.gpu_memory is None else _bytes(asked.gpu_memory)
    network = NETWORK if asked.network is None else asked.network * 1e9
    hardware = Hardware(
        asked.gpus, asked.gpus_per_node, memory, gpu, images_per_core(recipe), network, asked.cpus_per_gpu
    )
    precision = gpu.precision_of(recipe)
    recipe = recipe.variant(engine={"precision": precision})
    profile = profile_model(recipe, precision)
    options = feasible_options(recipe, profile, hardware)
    if not options:
        raise UserError(nearest(recipe, profile, hardware))
    best = recommended(options)
    schedule = StepSchedule(recipe, recipe.data.train_images) if recipe.data.train_images else None
    failures = _failures(best, schedule, asked.gpus, asked.mtbf_hours, asked.save_stall) if asked.mtbf_hours else None
    warnings = schedule.warnings() if schedule else []
    if as_json:
        values = {
            "recipe": recipe.name,
            "precision": precision,
            "parameters": profile.parameters,
            "multiply_adds": profile.multiply_adds,
            "rows": [_values(option, schedule) | {"recommended": option is best} for option in options],
            "reason": reason(best, options),
            "speeds": {
                "tflops": gpu.tflops[precision]._asdict(),
                "images_per_core": hardware.images_per_core._asdict(),
            },
            "failures": failures,
            "warnings": warnings,
        }
        return print(json.dumps(values, indent=2))
    _print_table(recipe, profile, hardware, asked, options, best, schedule)
    print(f"→ {reason(best, options)}")
    print(f"  {_command(best, hardware, named)}")
    print(_MEMORY)
    print(_speeds(hardware, precision, asked.network is None))
    if best.reading_seconds > best.gpu_seconds:
        print(_reading(recipe, hardware, best))
    if failures:
        print(
            f"A failure every {failures['hours_between_failures']:.1f} h: save every {failures['interval_seconds'] / 60:.1f} min "
            f"(run.save_every={failures['save_every']}); {failures['goodput']:.1%} of the time is then useful"
            + (f", {failures['expected_failures']:.1f} failures are to be expected." if schedule else ".")
        )
    for warning in warnings:
        print(f"warning: {warning}")


def _print_table(
    recipe: Recipe,
    profile: ModelProfile,
    hardware: Hardware,
    asked: PlanRequest,
    options: list[PlanOption],
    best: PlanOption,
    schedule: StepSchedule | None,
) -> None:
    nodes = "1 node" if hardware.nodes == 1 else f"{hardware.nodes} nodes"
    print(
        f"{recipe.name}: {recipe.model.name}, {profile.parameters:,} parameters, {recipe.input.size} px, {recipe.engine.precision}; "
        f"{hardware.gpus} GPUs ({asked.gpu}) of {round(hardware.memory / GIB, 1):g} GiB in {nodes}"
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("", "engine", "micro-batch × accumulation"):
        table.add_column(heading, no_wrap=True)
    for heading in (*_PARTS, "step", *(["training"] if schedule else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for option in options:
        parts = [f"{getattr(option.memory, part) / GIB:.1f}" for part in _PARTS]
        training = [_duration(option.step_seconds * schedule.total_steps)] if schedule else []
        cut = f"{option.cut.micro_batch} × {option.cut.accumulation}" + (
            f" − {option.cut.padding} padding" if option.cut.padding else ""
        )
        table.add_row(
            "→" if option is best else "", option.engine, cut, *parts, _duration(option.step_seconds), *training
        )
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)
    print("GiB on each GPU at the peak of a step.")


def _speeds(hardware: Hardware, precision: str, network_assumed: bool) -> str:
    tflops, reading = hardware.gpu.tflops[precision], hardware.images_per_core
    return (
        f"Times follow from {tflops.value:.3g} TFLOP/s a GPU ({tflops.source}), {hardware.network / 1e9:g} GB/s a node between nodes "
        f"({'assumed' if network_assumed else 'given'}), and {reading.value:,.0f} images/s a core ({reading.source}) of "
        f"{hardware.cpus_per_gpu} a GPU: expect a factor of two either way where one is assumed."
    )


def _reading(recipe: Recipe, hardware: Hardware, option: PlanOption) -> str:
    needed = hardware.cpus_per_gpu * option.reading_seconds / option.gpu_seconds
    return (
        f"Reading bounds the step: all loader processes prepare {hardware.images_per_second:,.0f} images/s and the GPUs would take "
        f"{recipe.batch.global_ / option.gpu_seconds:,.0f}; about {math.ceil(needed)} cores a GPU (--cpus-per-gpu) would keep up."
    )


def _command(option: PlanOption, hardware: Hardware, named: list[str]) -> str:
    """What runs it: on one machine at once, on several through SLURM."""
    engine = option.recipe.engine
    changes = [f"engine.zero={engine.zero}"]
    changes += [f"engine.offload={engine.offload}"] if engine.zero else []
    changes += [f"engine.checkpoint_activations={str(engine.checkpoint_activations).lower()}"]
    command = ["bigbatch", "train" if hardware.nodes == 1 else "submit", *named, *changes]
    if option.recipe.data.path is None:
        command += ["--data", "SHARDS"]
    if hardware.nodes == 1:
        command += ["--procs", str(hardware.gpus)]
    else:
        command += ["--nodes", str(hardware.nodes), "--gpus-per-node", str(hardware.per_node)]
    return shlex.join([*command, "--micro-batch", str(option.cut.micro_batch)])


def _values(option: PlanOption, schedule: StepSchedule | None) -> dict:
    engine = option.recipe.engine
    return {
        "zero": engine.zero,
        "offload": engine.offload,
        "checkpoint_activations": engine.checkpoint_activations,
        "world_size": option.cut.world_size,
        "micro_batch": option.cut.micro_batch,
        "accumulation": option.cut.accumulation,
        "padding": option.cut.padding,
        "bytes": {part: getattr(option.memory, part) for part in (*_PARTS, "host")},
        "step_seconds": option.step_seconds,
        "reading_seconds": option.reading_seconds,
        "training_seconds": option.step_seconds * schedule.total_steps if schedule else None,
    }


def _failures(option: PlanOption, schedule: StepSchedule | None, gpus: int, mtbf_hours: float, stall: float) -> dict:
    mtbf = mtbf_hours * 3600 / gpus
    interval = max(option.step_seconds, best_interval(stall, mtbf))
    useful = goodput(interval, stall, mtbf, _RESTART)
    training = option.step_seconds * schedule.total_steps if schedule else None
    return {
        "hours_between_failures": mtbf / 3600,
        "interval_seconds": interval,
        "save_every": max(1, round(interval / option.step_seconds)),
        "goodput": useful,
        "expected_failures": training / useful / mtbf if training and useful else None,
    }


def _duration(seconds: float) -> str:
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.2f} s"


def _bytes(text: str) -> int:
    """Raises UserError unless `text` is a number of GiB or GB."""
    parts = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(GiB|GB|G)?\s*", text, re.IGNORECASE)
    if parts is None:
        raise UserError(f"--gpu-memory {text} is not a size: write it as 80GiB")
    return round(float(parts[1]) * (1e9 if (parts[2] or "").lower() == "gb" else GIB))
