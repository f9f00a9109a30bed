"""GPUs: memory, and how fast they are taken to be.

The speeds are assumptions without a source: guesses of what such cards reach on convolutional networks in training with torch's own
kernels, a ninth to a sixth of the data sheet's dense 16-bit figure. Expect a factor of two either way, and give `--tflops` once measured.
"""

from dataclasses import dataclass

from recipes.errors import UserError


@dataclass(frozen=True)
class Gpu:
    """`tflops` is achieved, not peak, in 1e12 multiplications and additions a second; `links` is GB/s between GPUs of a node."""

    memory_gib: int
    tflops_float32: float
    tflops_16_bit: float
    links: float
    has_bf16: bool = True


GPUS = {
    "v100": Gpu(16, 9, 20, 100, has_bf16=False),
    "a100": Gpu(40, 13, 55, 200),
    "a100-80": Gpu(80, 13, 55, 200),
    "h100": Gpu(80, 30, 110, 300),
}


def gpu_named(name: str) -> Gpu:
    """Raises UserError where there is none of that name."""
    if name not in GPUS:
        raise UserError(f"--gpu {name} is not in the table: use one of {', '.join(GPUS)} with --gpu-memory, --tflops")
    return GPUS[name]


def kind_of(device_name: str) -> str:
    """The kind of a GPU by the name that its driver gives; one that is not in the table is taken to be as fast as an A100."""
    found = [kind for kind in GPUS if kind in device_name.lower()]
    return found[0] if found else "a100"
