"""Whatever process is slow or killed, and wherever, no protocol over the file system breaks its promise.

`python -m tests.protocols` tries every interleaving; here each protocol is tried with some, others at every run.
"""

import time

import pytest

from tests.protocols.harness import try_all
from tests.protocols.protocols import protocols

_TRIED = 18  # of each protocol


@pytest.mark.slow
@pytest.mark.parametrize("protocol", protocols(), ids=lambda protocol: protocol.name)
def test_a_pause_or_a_kill_anywhere_keeps_the_promise(protocol, tmp_path):
    seed = time.time_ns()
    tried, problems = try_all(protocol, tmp_path, only=_TRIED, seed=seed)
    assert tried and not problems, f"seed {seed}: {problems}"
