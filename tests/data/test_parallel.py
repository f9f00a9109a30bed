"""Worker processes of shard and verify: a killed worker is one sentence, and none outlives its parent."""

import os
import signal
import time
from pathlib import Path

import pytest

from data.parallel import Worker, for_each
from data.worker_processes import CONTEXT
from recipes.errors import UserError
from tests.data.processes import is_alive


def run(task, arguments, workers: int = 2, shared=None) -> list:
    return list(for_each(task, arguments, shared, workers, "test", len(arguments), "numbers", shown=False))


def _double(worker: Worker, number: int) -> int:
    worker.advance()
    return worker.shared * number


def _die_at_three(_worker: Worker, number: int) -> int:
    if number == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    time.sleep(0.01)
    return number


def _write_pid_and_wait(worker: Worker, number: int) -> None:
    Path(worker.shared, f"{number}.pid").write_text(str(os.getpid()))
    time.sleep(60)


def test_every_argument_gives_its_result():
    assert sorted(run(_double, range(20), shared=2)) == list(range(0, 40, 2))


def test_a_killed_worker_is_one_sentence():
    with pytest.raises(
        UserError, match=r"signal 9 \(SIGKILL\).*memory: give the same command again with fewer workers"
    ):
        run(_die_at_three, range(20))


def test_a_system_that_allows_no_more_processes_is_one_sentence(monkeypatch):
    def refuse(_process) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(CONTEXT.Process, "_Popen", staticmethod(refuse))
    with pytest.raises(UserError, match=r"cannot start \(Resource temporarily unavailable\).*give fewer workers"):
        run(_double, range(4), shared=2)


def test_workers_end_when_their_parent_is_killed(tmp_path):
    parent = CONTEXT.Process(target=run, args=(_write_pid_and_wait, range(2)), kwargs={"shared": str(tmp_path)})
    parent.start()
    deadline = time.monotonic() + 30
    while len(pids := [path.read_text() for path in tmp_path.glob("*.pid")]) < 2 or "" in pids:
        assert time.monotonic() < deadline
        time.sleep(0.02)
    parent.kill()
    parent.join()
    while any(is_alive(int(pid)) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
