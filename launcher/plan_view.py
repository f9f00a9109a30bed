"""`bigbatch plan` as a person, or a script, reads it."""

import json
import math
import re
import shlex
import sys
from dataclasses import dataclass

from rich.console import Console
from rich.table import Table

from launcher.checkpoint_interval import best_interval, goodput
from launcher.gpus import gpu_named
from launcher.memory_model import GIB
from launcher.model_needs import ModelNeeds, model_needs
from launcher.plan import CPUS_PER_GPU, NETWORK, Machines, Row, feasible_rows, nearest, reason, recommended
from launcher.speeds import images_per_core
from recipes.errors import UserError
from recipes.schedule import Timetable
from recipes.schema import Recipe

_PIPED_WIDTH = 200
_RESTART = 300.0  # seconds from a failure to training again: queue, start, read; assumed
_PARTS = ("parameters", "gradients", "optimizer", "ema", "activations", "engine", "allowance", "peak")
_MEMORY = "Memory is traced and counted, but for an allowance of 6% and 1 GiB that no GPU has confirmed."


@dataclass(frozen=True)
class Question:
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


def print_plan(recipe: Recipe, asked: Question, named: list[str], as_json: bool) -> None:
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
    machines = Machines(asked.gpus, asked.gpus_per_node, memory, gpu, images_per_core(recipe), network, asked.cpus_per_gpu)
    precision = gpu.precision_of(recipe)
    recipe = recipe.model_copy(update={"engine": recipe.engine.model_copy(update={"precision": precision})})
    needs = model_needs(recipe, precision)
    rows = feasible_rows(recipe, needs, machines)
    if not rows:
        raise UserError(nearest(recipe, needs, machines))
    best = recommended(rows)
    timetable = Timetable(recipe, recipe.data.train_images) if recipe.data.train_images else None
    failures = _failures(best, timetable, asked.gpus, asked.mtbf_hours, asked.save_stall) if asked.mtbf_hours else None
    warnings = timetable.warnings() if timetable else []
    if as_json:
        values = {
            "recipe": recipe.name,
            "precision": precision,
            "parameters": needs.parameters,
            "multiply_adds": needs.multiply_adds,
            "rows": [_values(row, timetable) | {"recommended": row is best} for row in rows],
            "reason": reason(best, rows),
            "speeds": {"tflops": gpu.tflops[precision]._asdict(), "images_per_core": machines.images_per_core._asdict()},
            "failures": failures,
            "warnings": warnings,
        }
        return print(json.dumps(values, indent=2))
    _print_table(recipe, needs, machines, asked, rows, best, timetable)
    print(f"→ {reason(best, rows)}")
    print(f"  {_command(best, machines, named)}")
    print(_MEMORY)
    print(_speeds(machines, precision, asked.network is None))
    if best.reading_seconds > best.gpu_seconds:
        print(_reading(recipe, machines, best))
    if failures:
        print(
            f"A failure every {failures['hours_between_failures']:.1f} h: save every {failures['interval_seconds'] / 60:.1f} min "
            f"(run.save_every={failures['save_every']}); {failures['goodput']:.1%} of the time is then useful"
            + (f", {failures['expected_failures']:.1f} failures are to be expected." if timetable else ".")
        )
    for warning in warnings:
        print(f"warning: {warning}")


def _print_table(
    recipe: Recipe, needs: ModelNeeds, machines: Machines, asked: Question, rows: list[Row], best: Row, timetable: Timetable | None
) -> None:
    nodes = "1 node" if machines.nodes == 1 else f"{machines.nodes} nodes"
    print(
        f"{recipe.name}: {recipe.model.name}, {needs.parameters:,} parameters, {recipe.input.size} px, {recipe.engine.precision}; "
        f"{machines.gpus} GPUs ({asked.gpu}) of {round(machines.memory / GIB, 1):g} GiB in {nodes}"
    )
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("", "engine", "micro-batch × accumulation"):
        table.add_column(heading, no_wrap=True)
    for heading in (*_PARTS, "step", *(["training"] if timetable else [])):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        parts = [f"{getattr(row.memory, part) / GIB:.1f}" for part in _PARTS]
        training = [_duration(row.step_seconds * timetable.total_steps)] if timetable else []
        cut = f"{row.cut.micro_batch} × {row.cut.accumulation}" + (f" − {row.cut.padding} padding" if row.cut.padding else "")
        table.add_row("→" if row is best else "", row.engine, cut, *parts, _duration(row.step_seconds), *training)
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)
    print("GiB on each GPU at the peak of a step.")


def _speeds(machines: Machines, precision: str, network_assumed: bool) -> str:
    tflops, reading = machines.gpu.tflops[precision], machines.images_per_core
    return (
        f"Times follow from {tflops.value:.3g} TFLOP/s a GPU ({tflops.source}), {machines.network / 1e9:g} GB/s a node between nodes "
        f"({'assumed' if network_assumed else 'given'}), and {reading.value:,.0f} images/s a core ({reading.source}) of "
        f"{machines.cpus_per_gpu} a GPU: expect a factor of two either way where one is assumed."
    )


def _reading(recipe: Recipe, machines: Machines, row: Row) -> str:
    needed = machines.cpus_per_gpu * row.reading_seconds / row.gpu_seconds
    return (
        f"Reading bounds the step: all loader processes prepare {machines.images_per_second:,.0f} images/s and the GPUs would take "
        f"{recipe.batch.global_ / row.gpu_seconds:,.0f}; about {math.ceil(needed)} cores a GPU (--cpus-per-gpu) would keep up."
    )


def _command(row: Row, machines: Machines, named: list[str]) -> str:
    """What runs it: on one machine at once, on several through SLURM."""
    engine = row.recipe.engine
    changes = [f"engine.zero={engine.zero}"]
    changes += [f"engine.offload={engine.offload}"] if engine.zero else []
    changes += [f"engine.checkpoint_activations={str(engine.checkpoint_activations).lower()}"]
    command = ["bigbatch", "train" if machines.nodes == 1 else "submit", *named, *changes]
    if row.recipe.data.path is None:
        command += ["--data", "SHARDS"]
    if machines.nodes == 1:
        command += ["--procs", str(machines.gpus)]
    else:
        command += ["--nodes", str(machines.nodes), "--gpus-per-node", str(machines.per_node)]
    return shlex.join([*command, "--micro-batch", str(row.cut.micro_batch)])


def _values(row: Row, timetable: Timetable | None) -> dict:
    engine = row.recipe.engine
    return {
        "zero": engine.zero,
        "offload": engine.offload,
        "checkpoint_activations": engine.checkpoint_activations,
        "world_size": row.cut.world_size,
        "micro_batch": row.cut.micro_batch,
        "accumulation": row.cut.accumulation,
        "padding": row.cut.padding,
        "bytes": {part: getattr(row.memory, part) for part in (*_PARTS, "host")},
        "step_seconds": row.step_seconds,
        "reading_seconds": row.reading_seconds,
        "training_seconds": row.step_seconds * timetable.total_steps if timetable else None,
    }


def _failures(row: Row, timetable: Timetable | None, gpus: int, mtbf_hours: float, stall: float) -> dict:
    mtbf = mtbf_hours * 3600 / gpus
    interval = max(row.step_seconds, best_interval(stall, mtbf))
    useful = goodput(interval, stall, mtbf, _RESTART)
    training = row.step_seconds * timetable.total_steps if timetable else None
    return {
        "hours_between_failures": mtbf / 3600,
        "interval_seconds": interval,
        "save_every": max(1, round(interval / row.step_seconds)),
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
