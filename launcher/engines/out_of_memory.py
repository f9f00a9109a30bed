"""Recognises out-of-memory errors of a device or of a library under torch."""

import torch
from accelerate.utils.memory import should_reduce_batch_size


def is_out_of_memory(error: Exception) -> bool:
    """Return whether torch or a library under it raised this because memory ran out."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
