"""Sets how torch computes on a GPU, alike for training, for the calibration and for benchmarks."""

import os

import torch

from recipes.errors import UserError

_NOT_DETERMINISTIC = " does not have a deterministic implementation"  # torch says this of an operation


def set_arithmetic(deterministic: bool = False) -> None:
    """Let cuDNN choose the fastest kernels, or let everything be deterministic; float32 is never rounded to TF32.

    torch's own defaults round the inputs of float32 convolutions to TF32, but not those of matrix products. Here both
    are exact, so that "float32" means one precision, and a ConvNeXt's 1x1 convolutions do not depend on whether they
    are written as linear layers. It has no effect on bf16 and fp16.

    Args:
        deterministic: `engine.deterministic` of the recipe. cuDNN's choice depends on timings, so it is off then.
    """
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = not deterministic
    if torch.are_deterministic_algorithms_enabled() and not deterministic:  # an earlier run of this process
        torch.use_deterministic_algorithms(False)
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)
        # Filling new buffers helps to find reads of uninitialized memory, but changes no result and costs time.
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # not in torch's stubs


def check_kernel_exists(error: RuntimeError) -> None:
    """Explain the error of an operation that torch has no deterministic kernel for; return at any other error.

    Raises:
        UserError: it is such an error.
    """
    operation, found, _ = str(error).partition(_NOT_DETERMINISTIC)
    if found:
        raise UserError(
            f"engine.deterministic=true, but torch has no deterministic kernel for {operation}, which the model needs: "
            f"add engine.deterministic=false"
        ) from None
