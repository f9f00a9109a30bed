"""The output of `bigbatch plan`: a table and sentences, or JSON for scripts."""

import json
import math
import shlex
import sys
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from data.images.augment import is_augmented
from launcher.planning import published_errors
from launcher.planning.checkpoint_interval import best_interval, goodput
from launcher.planning.gpus import DATA_SHEET, gpu_count
from launcher.planning.memory_model import GIB
from launcher.planning.model_profile import ModelProfile
from launcher.planning.plan import PlanOption, explain_recommendation, recommend
from launcher.planning.plan_request import PlanRequest, make_plan
from launcher.planning.speeds import load_speeds, speeds_file
from launcher.planning.time_model import Hardware, gpu_seconds
from launcher.recipe_shards import planned_images
from recipes.schedule import StepSchedule
from recipes.schema import Recipe

_PIPED_WIDTH = 200  # columns where the output is not a terminal, so that no table is cut off
_RESTART = 300.0  # assumed seconds from a failure until training runs again: queue, start, read the checkpoint
_PARTS = ("parameters", "gradients", "optimizer", "ema", "activations", "engine", "allowance", "peak")
_FEATURES = (
    "Only the head trains, on images that are not augmented. Unless the model forbids it, features are computed once, "
    "so that training takes little longer than its first epoch."
)


def print_plan(recipe: Recipe, request: PlanRequest, recipe_arguments: list[str], as_json: bool) -> None:
    """Print the options that fit, the recommended one and the reason for it.

    Args:
        recipe_arguments: the recipe and the overrides as the user gave them.

    Raises:
        UserError: nothing fits, or the recipe or the hardware is impossible.
    """
    images = planned_images(recipe)  # refuses missing shards before the model is traced, which takes minutes
    plan = make_plan(recipe, request)
    recipe, profile, hardware, options = plan.recipe, plan.profile, plan.hardware, plan.options
    precision = recipe.engine.precision
    best = recommend(options)
    schedule = StepSchedule(recipe, images) if images else None
    failures = _failures(best, schedule, request) if request.mtbf_hours else None
    warnings = schedule.warnings() if schedule else []
    if as_json:
        values = {
            "recipe": recipe.name,
            "precision": precision,
            "parameters": profile.parameters,
            "multiply_adds": profile.multiply_adds,
            "rows": [_values(option, schedule) | {"recommended": option is best} for option in options],
            "reason": explain_recommendation(best, options),
            "speeds": {
                "gpu": asdict(hardware.gpu.rates[precision]),
                "images_per_core": hardware.images_per_core._asdict(),
            },
            "failures": failures,
            "warnings": warnings,
        }
        print(json.dumps(values, indent=2))
        return
    _print_table(recipe, profile, hardware, request, options, best, schedule)
    print(f"→ {explain_recommendation(best, options)}")
    print(f"  {_command(best, hardware, recipe_arguments)}")
    print(published_errors.MEMORY)
    print(_sources_of_times(hardware, precision, request.network is None))
    if hardware.gpu.rates[precision].source == DATA_SHEET:
        print(published_errors.TIMES)
    if outdated := load_speeds().outdated:
        print(_outdated_note(outdated))
    if (fused := _fused_seconds(best, profile, hardware)) is not None:
        print(
            f"With engine.compile=true a step takes at least {_duration(fused)}: as long as if everything between "
            "convolutions, matrix products and norms were fused into them."
        )
    if recipe.model.train == "head" and not is_augmented(recipe):
        print(_FEATURES)
    if best.reading_seconds > best.gpu_seconds:
        print(_reading_note(recipe, hardware, best))
    if failures:
        print(
            f"A failure every {failures['hours_between_failures']:.1f} h: save every "
            f"{failures['interval_seconds'] / 60:.1f} min (run.save_every={failures['save_every']}); "
            f"{failures['goodput']:.1%} of the time is then useful"
            + (f", and {failures['expected_failures']:.1f} failures are expected." if schedule else ".")
        )
    for warning in warnings:
        print(f"warning: {warning}")


def _print_table(
    recipe: Recipe,
    profile: ModelProfile,
    hardware: Hardware,
    request: PlanRequest,
    options: list[PlanOption],
    best: PlanOption,
    schedule: StepSchedule | None,
) -> None:
    nodes = "1 node" if hardware.nodes == 1 else f"{hardware.nodes} nodes"
    print(
        f"{recipe.name}: {recipe.model.name}, {profile.parameters:,} parameters, {recipe.input.size} px, "
        f"{recipe.engine.precision}; "
        f"{gpu_count(hardware.gpus)} ({request.gpu}) of {round(hardware.memory / GIB, 1):g} GiB in {nodes}"
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


def _sources_of_times(hardware: Hardware, precision: str, network_assumed: bool) -> str:
    """Return one sentence that names the speeds behind the predicted times, and where each is from."""
    rates, reading = hardware.gpu.rates[precision], hardware.images_per_core
    return (
        f"Times follow from {rates.tflops:.3g} TFLOP/s and {rates.gb_per_second:,.0f} GB/s of memory per GPU "
        f"({rates.source}), {hardware.network / 1e9:g} GB/s "
        f"per node ({'assumed' if network_assumed else 'given'}), and {reading.value:,.0f} images/s a core "
        f"({reading.source}) with {hardware.cpus_per_gpu} cores per GPU."
    )


def _outdated_note(kinds: list[str]) -> str:
    return (
        f"note: {speeds_file()} holds speeds of {', '.join(kinds)} as version 0.1 measured them, which are no longer "
        "used: measure again with `bigbatch plan --calibrate`"
    )


def _fused_seconds(option: PlanOption, profile: ModelProfile, hardware: Hardware) -> float | None:
    """Return the seconds of an option's step if its model is compiled; None if it is already, or cannot be."""
    if option.recipe.engine.compile or option.recipe.engine.zero == 3:
        return None
    return gpu_seconds(option.recipe.variant(engine={"compile": True}), profile, hardware, option.cut)


def _reading_note(recipe: Recipe, hardware: Hardware, option: PlanOption) -> str:
    """Return one sentence for a step that waits for images: how many more cores would be enough."""
    needed = hardware.cpus_per_gpu * option.reading_seconds / option.gpu_seconds
    return (
        f"Reading bounds the step: all loader processes prepare {hardware.images_per_second:,.0f} images/s and the "
        f"GPUs could train {recipe.batch.global_ / option.gpu_seconds:,.0f}; about {math.ceil(needed)} cores per GPU "
        f"(--cpus-per-gpu) would be enough."
    )


def _command(option: PlanOption, hardware: Hardware, recipe_arguments: list[str]) -> str:
    """Return the command that runs an option: `train` on one node, `submit` on several."""
    engine = option.recipe.engine
    changes = [f"engine.zero={engine.zero}"]
    changes += [f"engine.offload={engine.offload}"] if engine.zero else []
    changes += [f"engine.checkpoint_activations={str(engine.checkpoint_activations).lower()}"]
    command = ["bigbatch", "train" if hardware.nodes == 1 else "submit", *recipe_arguments, *changes]
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


def _failures(option: PlanOption, schedule: StepSchedule | None, request: PlanRequest) -> dict:
    """Return how often to save and what failures cost; `mtbf_hours` of the request must be given."""
    assert request.mtbf_hours is not None
    stall, mtbf = request.save_stall, request.mtbf_hours * 3600 / request.gpus
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
