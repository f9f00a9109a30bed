"""The number of CPUs that this process may use."""

import os


def usable_cpus() -> int:
    """Return the number of CPUs in this process's affinity mask; on macOS, which has no mask, all CPUs."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
