"""Lets a process that computes on a CPU reuse the memory of activations.

glibc returns every large block to the system when it is freed. The next pass asks for it again, and the kernel fills
each of its pages with zeros first: half of the processor time of a forward pass may be that.
"""

import ctypes
import os

_TRIM_THRESHOLD, _MMAP_MAX = -1, -4  # names of parameters of mallopt, from glibc's malloc.h
_NEVER = -1


def keep_freed_memory() -> None:
    """Let the C library keep the memory that this process frees, up to the most that it ever needed.

    It does nothing without glibc, for instance on macOS, and where the environment decides (MALLOC_MMAP_MAX_).
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None and "MALLOC_MMAP_MAX_" not in os.environ:
        mallopt(_MMAP_MAX, 0)  # large blocks are parts of the heap too
        mallopt(_TRIM_THRESHOLD, _NEVER)
