"""GPUs: memory, and how fast they are taken to be in training.

The table's speeds are assumptions without a source: guesses of what such cards reach on convolutional networks with torch's own
kernels, a ninth to a sixth of the data sheet's dense 16-bit figure. Expect a factor of two either way. `bigbatch plan --calibrate`
measures instead, and what it found (`launcher.planning.speeds`) takes the table's place.
"""

import re
from dataclasses import dataclass, replace

from launcher.planning.speeds import Measurement, measured
from recipes.errors import UserError
from recipes.schema import Recipe

_ASSUMED = "assumed"
CPU = "cpu"


@dataclass(frozen=True)
class Gpu:
    """`tflops` is achieved, not peak, in 1e12 multiplications and additions a second, by precision; `links` is GB/s inside a node."""

    kind: str  # chip, whatever its memory
    memory_gib: float
    tflops: dict[str, Measurement]
    links: float
    has_bf16: bool = True

    def precision_of(self, recipe: Recipe) -> str:
        """What a recipe is trained at on it: "float32", "bf16" or "fp16"."""
        if recipe.engine.precision != "auto":
            return recipe.engine.precision
        return "bf16" if self.has_bf16 else "float32"

    def reaching(self, tflops: float) -> "Gpu":
        """The same at a speed that the user knows."""
        return replace(
            self, tflops={precision: Measurement(tflops, "given") for precision in ("float32", "bf16", "fp16")}
        )


def _assumed(
    kind: str, memory_gib: float, float32: float, sixteen_bit: float, links: float, has_bf16: bool = True
) -> Gpu:
    values = {"float32": float32, "bf16": sixteen_bit, "fp16": sixteen_bit}
    return Gpu(
        kind,
        memory_gib,
        {precision: Measurement(value, _ASSUMED) for precision, value in values.items()},
        links,
        has_bf16,
    )


GPUS = {
    "v100": _assumed("v100", 16, 9, 20, 100, has_bf16=False),
    "a100": _assumed("a100", 40, 13, 55, 200),
    "a100-80": _assumed("a100", 80, 13, 55, 200),
    "h100": _assumed("h100", 80, 30, 110, 300),
}


def gpu_named(name: str, recipe: Recipe) -> Gpu:
    """A GPU of the table or one that was measured, or "cpu" once that was; for the recipe, measured speeds win.

    Raises:
        UserError: there is none of that name.
    """
    devices = measured().devices
    gpu = GPUS.get(name)
    if gpu is None and name not in devices:
        known = ", ".join(dict.fromkeys([*GPUS, *devices]))
        raise UserError(
            f"--gpu {name} is not in the table: use one of {known}, or measure it there with `bigbatch plan --calibrate`"
        )
    if gpu is None:
        reached = devices[name].reached(recipe)
        gpu = replace(
            GPUS["a100"], kind=name, memory_gib=devices[name].memory_gib, has_bf16="bf16" in reached and name != CPU
        )
    return replace(gpu, tflops=gpu.tflops | (devices[gpu.kind].reached(recipe) if gpu.kind in devices else {}))


def kind_of(device_name: str) -> str:
    """The kind of a GPU by the name that its driver gives, e.g. "h100"; of one that is not in the table, its name in a word."""
    name = device_name.lower()
    known = [gpu.kind for gpu in GPUS.values() if gpu.kind in name]
    return (
        known[0] if known else re.sub(r"[^a-z0-9]+", "-", name.replace("nvidia", "").replace("geforce", "")).strip("-")
    )


def gpu_of_device(device_name: str, recipe: Recipe) -> Gpu:
    """A GPU by the name that its driver gives; one that is neither known nor measured is taken to be as fast as an A100."""
    kind = kind_of(device_name)
    return gpu_named(kind if kind in GPUS or kind in measured().devices else "a100", recipe)
