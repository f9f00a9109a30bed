"""GPUs: memory, and the rates that training reaches on them, from their data sheets and two constants.

A data sheet names the best case. How much of it training reaches is said by two constants, fitted on published
training speeds of one card (docs/measurements/plan-accuracy.md says how well they fit others). `bigbatch plan
--calibrate` measures both rates instead, and measured ones (`launcher.planning.speeds`) replace the table's.
"""

import re
from dataclasses import dataclass, replace

from launcher.planning.speeds import Rates, load_speeds
from recipes.errors import UserError
from recipes.schema import Recipe

CPU = "cpu"
# Shares of the data sheet's arithmetic and memory bandwidth, fitted with `python -m tests.benchmarks.plan_accuracy`.
_REACHED_ARITHMETIC = 1.0
_REACHED_BANDWIDTH = 0.7
DATA_SHEET = "data sheet, two constants"  # the source of rates that were neither measured nor given


def gpu_count(count: int) -> str:
    """Return a number of GPUs for a sentence."""
    return "1 GPU" if count == 1 else f"{count} GPUs"


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Attributes:
        kind: the chip; cards that differ in memory alone share it.
        rates: that training reaches, by precision.
        link_gb_per_second: bandwidth between GPUs of one node.
    """

    kind: str
    memory_gib: float
    rates: dict[str, Rates]
    link_gb_per_second: float
    has_bf16: bool = True

    def precision_of(self, recipe: Recipe) -> str:
        """Return the precision that a recipe is trained at on this GPU: "float32", "bf16" or "fp16"."""
        if recipe.engine.precision != "auto":
            return recipe.engine.precision
        return "bf16" if self.has_bf16 else "float32"

    def with_tflops(self, tflops: float) -> "Gpu":
        """Return the same GPU with a rate of arithmetic that the user gave."""
        rates = {
            precision: replace(found, tflops=tflops, source=f"TFLOP/s given, bandwidth: {found.source}")
            for precision, found in self.rates.items()
        }
        return replace(self, rates=rates)


def _card(
    kind: str,
    memory_gib: float,
    gb_per_second: float,
    float32: float,
    sixteen_bit: float,
    link_gb_per_second: float,
    has_bf16: bool = True,
) -> Gpu:
    """Return a card from its data sheet.

    Args:
        gb_per_second: of its memory.
        float32: TFLOP/s without tensor cores, since "float32" rounds nothing to TF32.
        sixteen_bit: dense TFLOP/s of the tensor cores, 16-bit inputs with float32 sums.
        link_gb_per_second: what collectives reach between GPUs of one node, assumed: about two thirds of NVLink's
            bandwidth in one direction, or 15 of PCIe's 32 (16 before the fourth generation).
    """

    def reached(tflops: float) -> Rates:
        return Rates(tflops * _REACHED_ARITHMETIC, gb_per_second * _REACHED_BANDWIDTH, DATA_SHEET)

    rates = {"float32": reached(float32), "bf16": reached(sixteen_bit), "fp16": reached(sixteen_bit)}
    return Gpu(kind, memory_gib, rates, link_gb_per_second, has_bf16)


# NVIDIA's data sheets, SXM where there is one; memory in GiB as the driver counts it, rounded.
GPUS = {
    "v100": _card("v100", 16, 900, 15.7, 125, 100, has_bf16=False),
    "v100-32": _card("v100", 32, 900, 15.7, 125, 100, has_bf16=False),
    "t4": _card("t4", 15, 320, 8.1, 65, 8, has_bf16=False),
    "a10": _card("a10", 22.5, 600, 31.2, 125, 15),
    "l4": _card("l4", 22.5, 300, 30.3, 121, 15),
    "l40s": _card("l40s", 44.5, 864, 91.6, 362, 15),
    "a100": _card("a100", 40, 1555, 19.5, 312, 200),
    "a100-80": _card("a100", 80, 2039, 19.5, 312, 200),
    "h100": _card("h100", 80, 3350, 67, 989, 300),
    "h200": _card("h200", 140, 4800, 67, 989, 300),
    "b200": _card("b200", 179, 8000, 80, 2250, 600),
    "rtx3090": _card("rtx3090", 24, 936, 35.6, 71, 15),
    "rtx4090": _card("rtx4090", 24, 1008, 82.6, 165, 15),
    "rtx5090": _card("rtx5090", 31.8, 1792, 104.8, 209.5, 30),
}


def gpu_named(name: str) -> Gpu:
    """Return a GPU of the table or one that was calibrated; "cpu" works too once it was calibrated.

    Args:
        name: a key of the table, or the card's name as the driver or a shop writes it, e.g. "NVIDIA A100-SXM4-80GB".

    Raises:
        UserError: the name is unknown.
    """
    devices = load_speeds().devices
    if name not in GPUS and name not in devices:
        name = _key_of(name)
    gpu = GPUS.get(name)
    if gpu is None and name not in devices:
        known = ", ".join(dict.fromkeys([*GPUS, *devices]))
        raise UserError(
            f"--gpu {name} is not in the table: use one of {known}, or measure it there with `bigbatch plan "
            "--calibrate`"
        )
    if gpu is None:
        measured = devices[name]
        # Calibration measures bf16 on a CPU too, but "auto" trains in float32 there.
        has_bf16 = "bf16" in measured.rates and name != CPU
        gpu = replace(GPUS["a100"], kind=name, memory_gib=measured.memory_gib, has_bf16=has_bf16)
    return replace(gpu, rates=gpu.rates | (devices[gpu.kind].rates if gpu.kind in devices else {}))


def _key_of(name: str) -> str:
    """Return the key of a card's name in the table; for a card outside the table, `kind_of` its name."""
    kind, memory = kind_of(name), re.search(r"(\d+) ?g", name.lower())
    with_memory = f"{kind}-{memory[1]}" if memory else kind
    return with_memory if with_memory in GPUS else kind or name


def kind_of(device_name: str) -> str:
    """Return the kind of a GPU from its driver's name, e.g. "h100"; outside the table it is that name as one word."""
    name = device_name.lower()
    words = re.split(r"[^a-z0-9]+", re.sub(r"\brtx[ -](\d)", r"rtx\1", name))
    if "laptop" not in words:  # a laptop's chip bears the name of a faster one
        for gpu in GPUS.values():
            if gpu.kind in words:
                return gpu.kind
    return re.sub(r"[^a-z0-9]+", "-", name.replace("nvidia", "").replace("geforce", "")).strip("-")


def gpu_of_device(device_name: str) -> Gpu:
    """Return a GPU from its driver's name; one neither in the table nor calibrated is assumed to equal an A100."""
    kind = kind_of(device_name)
    return gpu_named(kind if kind in GPUS or kind in load_speeds().devices else "a100")
