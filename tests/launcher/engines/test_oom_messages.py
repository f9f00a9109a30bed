"""Every library under torch that can run out of memory is recognised by what it says."""

import pytest
import torch

from launcher.engines.out_of_memory import is_out_of_memory


@pytest.mark.parametrize(
    "said",
    [
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "GET was unable to find an engine to execute this computation",
        "Triton Error [CUDA]: out of memory",
        "NCCL error: unhandled cuda error ... Failed to CUDA calloc async 2097152 bytes",
        "DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes",
    ],
)
def test_memory_that_ran_out_in_a_library_is_recognised(said):
    assert is_out_of_memory(RuntimeError(said))
    assert is_out_of_memory(torch.AcceleratorError(said) if hasattr(torch, "AcceleratorError") else RuntimeError(said))


def test_other_errors_are_not_taken_for_it():
    assert not is_out_of_memory(RuntimeError("CUDA error: an illegal memory access was encountered"))
    assert not is_out_of_memory(ValueError("out of memory"))
