"""Recognising that a device, or a library under torch, ran out of memory."""

import torch
from accelerate.utils.memory import should_reduce_batch_size


def is_out_of_memory(error: Exception) -> bool:
    """Return whether torch, or a library under it, raised this for want of memory."""
    return isinstance(error, torch.OutOfMemoryError) or should_reduce_batch_size(error)
