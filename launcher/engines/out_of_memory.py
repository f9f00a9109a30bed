"""Recognises out-of-memory errors of a device or of a library under torch."""

import torch
from accelerate.utils.memory import should_reduce_batch_size

# What libraries say that allocate memory outside of torch's pool, so that torch does not raise its own class: the CUDA
# runtime and Triton ("CUDA error: out of memory", "Triton Error [CUDA]: out of memory"), cuBLAS, cuDNN, cuSOLVER and
# NCCL.
_SAID = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "Failed to CUDA calloc",
    # torch tries one algorithm of cuDNN after another, and says this also if the memory was too short for each of them.
    "unable to find an engine to execute this computation",
)


def is_out_of_memory(error: Exception) -> bool:
    """Return whether torch or a library under it raised this because memory ran out."""
    if isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error):
        return True
    return isinstance(error, RuntimeError) and any(said in str(error) for said in _SAID)
