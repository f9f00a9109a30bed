"""A process that computes on a CPU does not ask the system for the memory of every activation anew."""

import os
import platform
import subprocess
import sys

import pytest

from tests.docs.pages import ROOT

PASSES, MEMORY, PAGE = 20, 2**26, 4096
SCRIPT = f"""
import resource, sys, torch
from launcher.engines.freed_memory import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for step in range(2 * {PASSES}):
    if step == {PASSES}:
        before = faults()
    torch.ones({MEMORY // 4})
print(faults() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc's malloc")
def test_freed_memory_is_used_again_without_the_kernel():
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("MALLOC_MMAP_MAX_", None)

    def page_faults(what: str) -> int:
        command = [sys.executable, "-c", SCRIPT, what]
        return int(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)

    # The kernel may give huge pages instead, of which 512 ordinary ones make one.
    assert page_faults("keep") < PASSES and page_faults("return") > PASSES * MEMORY / PAGE / 512
