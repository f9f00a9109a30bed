"""GPUs: their memory, and the speed that training is assumed to reach on them.

The speeds in the table are assumptions without a source: a ninth to a sixth of the data sheet's dense 16-bit figure,
as a guess of what convolutional networks reach with torch's own kernels. They may be wrong by a factor of two either
way. `bigbatch plan --calibrate` measures speeds instead, and measured ones (`launcher.planning.speeds`) replace the
table's.
"""

import re
from dataclasses import dataclass, replace

from launcher.planning.speeds import Measurement, load_speeds
from recipes.errors import UserError
from recipes.schema import Recipe

CPU = "cpu"


@dataclass(frozen=True)
class Gpu:
    """A kind of GPU.

    Attributes:
        kind: the chip; cards that differ in memory alone share it.
        tflops: achieved (not peak) arithmetic by precision, in 1e12 multiplications and additions per second.
        link_gb_per_second: bandwidth between GPUs of one node.
    """

    kind: str
    memory_gib: float
    tflops: dict[str, Measurement]
    link_gb_per_second: float
    has_bf16: bool = True

    def precision_of(self, recipe: Recipe) -> str:
        """Return the precision that a recipe is trained at on this GPU: "float32", "bf16" or "fp16"."""
        if recipe.engine.precision != "auto":
            return recipe.engine.precision
        return "bf16" if self.has_bf16 else "float32"

    def with_tflops(self, tflops: float) -> "Gpu":
        """Return the same GPU with a speed that the user gave."""
        given = Measurement(tflops, "given")
        return replace(self, tflops=dict.fromkeys(("float32", "bf16", "fp16"), given))


def _assumed(
    kind: str, memory_gib: float, float32: float, sixteen_bit: float, link_gb_per_second: float, has_bf16: bool = True
) -> Gpu:
    values = {"float32": float32, "bf16": sixteen_bit, "fp16": sixteen_bit}
    tflops = {precision: Measurement(value, "assumed") for precision, value in values.items()}
    return Gpu(kind, memory_gib, tflops, link_gb_per_second, has_bf16)


GPUS = {
    "v100": _assumed("v100", 16, 9, 20, 100, has_bf16=False),
    "a100": _assumed("a100", 40, 13, 55, 200),
    "a100-80": _assumed("a100", 80, 13, 55, 200),
    "h100": _assumed("h100", 80, 30, 110, 300),
}


def gpu_named(name: str, recipe: Recipe) -> Gpu:
    """Return a GPU of the table or one that was calibrated; "cpu" works too once it was calibrated.

    Speeds that were measured with the recipe's model are preferred.

    Raises:
        UserError: the name is unknown.
    """
    devices = load_speeds().devices
    gpu = GPUS.get(name)
    if gpu is None and name not in devices:
        known = ", ".join(dict.fromkeys([*GPUS, *devices]))
        raise UserError(
            f"--gpu {name} is not in the table: use one of {known}, or measure it there with `bigbatch plan "
            "--calibrate`"
        )
    if gpu is None:
        tflops = devices[name].tflops_for(recipe)
        # Calibration measures bf16 on a CPU too, but "auto" trains in float32 there.
        has_bf16 = "bf16" in tflops and name != CPU
        gpu = replace(GPUS["a100"], kind=name, memory_gib=devices[name].memory_gib, has_bf16=has_bf16)
    return replace(gpu, tflops=gpu.tflops | (devices[gpu.kind].tflops_for(recipe) if gpu.kind in devices else {}))


def kind_of(device_name: str) -> str:
    """Return the kind of a GPU from its driver's name, e.g. "h100"; outside the table it is that name as one word."""
    name = device_name.lower()
    for gpu in GPUS.values():
        if gpu.kind in name:
            return gpu.kind
    return re.sub(r"[^a-z0-9]+", "-", name.replace("nvidia", "").replace("geforce", "")).strip("-")


def gpu_of_device(device_name: str, recipe: Recipe) -> Gpu:
    """Return a GPU from its driver's name; one neither in the table nor calibrated is assumed to equal an A100."""
    kind = kind_of(device_name)
    return gpu_named(kind if kind in GPUS or kind in load_speeds().devices else "a100", recipe)
