"""Whatever process is slow or killed, and wherever, no protocol over the file system breaks its promise.

`python -m tests.protocols` tries every interleaving; here each protocol is tried with some, others at every run.
"""

import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import pytest

from tests.protocols.harness import try_all
from tests.protocols.protocols import protocols

_TRIED = 18  # of each protocol


@pytest.fixture(scope="module")
def small_process() -> Iterator[ProcessPoolExecutor]:
    """A process that has imported no more than it needs: the time of a fork, and thousands are tried, is its memory."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        yield pool


@pytest.mark.slow
@pytest.mark.parametrize("name", [protocol.name for protocol in protocols()])
def test_a_pause_or_a_kill_anywhere_keeps_the_promise(name, tmp_path, small_process):
    seed = time.time_ns()
    tried, problems = small_process.submit(_try_some, name, tmp_path, seed).result()
    assert tried and not problems, f"seed {seed}: {problems}"


def _try_some(name: str, folder: Path, seed: int) -> tuple[int, list[str]]:
    [protocol] = [one for one in protocols() if one.name == name]
    return try_all(protocol, folder, only=_TRIED, seed=seed)
