"""How many CPUs this process may use."""

import os


def usable_cpus() -> int:
    """CPUs that the system lets this process run on; where it does not tell (macOS), all that there are."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
