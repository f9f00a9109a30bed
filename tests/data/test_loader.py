"""Loader workers: nothing that goes wrong between them and the trainer hangs or shows a traceback."""

import itertools
import multiprocessing
import os
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from data import worker_processes
from data.loader import load_in_order
from data.shared_slots import SlotMessage
from data.worker_processes import CONTEXT, shared_memory_problem
from recipes.errors import UserError
from tests.data.processes import is_alive


class Numbers:
    """Item n is a tensor of n; `before` is called with n in the worker."""

    item_bytes = 8000

    def __init__(self, before: Callable[[int], None] = lambda number: None):
        self.before = before

    def __getitem__(self, number: int) -> tuple[torch.Tensor, str]:
        self.before(number)
        return torch.full((1000,), number), f"number {number}"


def loaded(dataset: Numbers, workers: int, items: int = 40) -> list[int]:
    found = list(load_in_order(dataset, range(items), workers))
    for number, (values, text) in enumerate(found):
        assert (values == number).all() and text == f"number {number}"
    return [int(values[0]) for values, _ in found]


@pytest.mark.parametrize("workers", [0, 1, 3])
def test_items_come_in_order_also_from_workers_of_unequal_speed(workers):
    def slow_at_times(number: int) -> None:
        time.sleep(0.02 * (number % 4 == 1))

    assert loaded(Numbers(slow_at_times), workers) == list(range(40))


def test_places_are_asked_for_one_by_one_and_never_all():
    """A run has millions of them."""
    endless = load_in_order(Numbers(), iter(range(10**12)), 1)
    assert [int(next(endless)[0][0]) for _ in range(5)] == list(range(5))


def test_what_a_worker_tells_the_user_arrives_as_it_was_said():
    def fail(number: int) -> None:
        if number == 3:
            raise UserError("the store is away: try again")

    with pytest.raises(UserError, match="^the store is away: try again$"):
        loaded(Numbers(fail), workers=2)


def test_a_worker_without_memory_is_one_sentence():
    def fail(_number: int) -> None:
        raise MemoryError

    with pytest.raises(UserError, match="out of memory: give fewer --workers"):
        loaded(Numbers(fail), workers=1)


def test_a_mistake_in_our_code_still_shows_where_it_is():
    def fail(_number: int) -> None:
        raise ZeroDivisionError("ours")

    with pytest.raises(ZeroDivisionError, match=r"test_loader\.py"):
        loaded(Numbers(fail), workers=1)


@pytest.mark.slow  # torch looks at its workers every five seconds
@pytest.mark.parametrize(
    "end, message",
    [
        (
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            r"signal 9 \(SIGKILL\).* ran out of memory: give fewer --workers",
        ),
        (lambda: os._exit(7), "ended with exit code 7"),
    ],
    ids=["killed", "ended"],
)
def test_a_worker_that_dies_is_one_sentence(end, message):
    def die(number: int) -> None:
        if number == 11:
            end()

    with pytest.raises(UserError, match=message):
        loaded(Numbers(die), workers=2)


@pytest.mark.slow  # as above
def test_a_batch_that_cannot_be_handed_over_ends_the_run(monkeypatch, capfd):
    """A queue pickles in a thread of its own, which drops what fails; the trainer must not wait for it."""

    def broken(_message: SlotMessage) -> tuple:
        raise RuntimeError("cannot be pickled today")

    monkeypatch.setattr(SlotMessage, "__reduce__", broken)
    with pytest.raises(UserError, match="a loader worker ended with exit code 1"):
        loaded(Numbers(), workers=1)
    assert "a loader worker cannot hand over a batch: cannot be pickled today" in capfd.readouterr().err


def test_a_death_is_not_raised_in_the_middle_of_other_work():
    """torch's signal handler would raise it while the trainer saves a checkpoint."""
    before = signal.getsignal(signal.SIGCHLD)
    batches = load_in_order(Numbers(), range(1000), 1)
    next(batches)
    assert signal.getsignal(signal.SIGCHLD) == before
    *_, worker = multiprocessing.active_children()
    worker.kill()
    worker.join()
    time.sleep(0.1)  # the trainer's other work


def test_a_temporary_folder_with_a_long_name_does_no_harm(tmp_path, monkeypatch):
    """The path of a socket has at most 107 letters, and a TMPDIR of a cluster is often longer."""
    folder = tmp_path / ("l" * 120)
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setitem(multiprocessing.process.current_process()._config, "tempdir", None)
    assert loaded(Numbers(), workers=2) == list(range(40))


@pytest.fixture
def few_files():
    """Let this process open only a few more files."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)

    def limit(more: int) -> None:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
        used = {int(path.name) for path in Path("/proc/self/fd").iterdir()}
        free = (number for number in range(before[0]) if number not in used)
        *_, last = itertools.islice(free, more)
        resource.setrlimit(resource.RLIMIT_NOFILE, (last + 1, before[1]))

    yield limit
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


def daemons() -> set:
    """The loader workers of this process that are alive; those of an earlier test may still be ending."""
    return {child for child in multiprocessing.active_children() if child.daemon}


def test_too_many_open_files_at_the_start_are_one_sentence(few_files):
    earlier = daemons()
    few_files(6)
    with pytest.raises(UserError, match="too many files are open: raise `ulimit -n`, or give fewer --workers"):
        loaded(Numbers(), workers=8)
    few_files(6)
    assert "ulimit -n" in shared_memory_problem()
    assert daemons() <= earlier


def test_a_limit_that_lets_workers_start_lets_any_number_of_batches_pass(few_files):
    """torch's own way keeps a file open for each tensor that is still in use."""
    few_files(12)
    assert loaded(Numbers(), workers=1, items=100) == list(range(100))


def test_a_system_that_allows_no_more_processes_is_one_sentence(monkeypatch):
    def refuse(_process) -> None:
        raise BlockingIOError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(CONTEXT.Process, "_Popen", staticmethod(refuse))
    with pytest.raises(UserError, match=r"cannot start \(Resource temporarily unavailable\): allow more processes"):
        loaded(Numbers(), workers=2)


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="mounts a file system of its own")
@pytest.mark.parametrize("size, works", [("64k", True), ("8k", False)])
def test_a_full_dev_shm_is_enough_or_is_one_sentence(size, works):
    """64 KiB, a thousandth of what Docker gives, hold the locks of two workers; batches need no room there."""
    program = textwrap.dedent(
        """
        from tests.data.test_loader import Numbers, loaded
        from data.worker_processes import shared_memory_problem
        print(shared_memory_problem(2))
        print(len(loaded(Numbers(), workers=2)))
        """
    )
    command = f"mount -t tmpfs -o size={size} tmpfs /dev/shm && exec {sys.executable} -c '{program}'"
    if shutil.which("unshare") is None or subprocess.run(["unshare", "-m", "true"]).returncode:
        pytest.skip("no mount namespaces here")
    result = subprocess.run(["unshare", "-m", "sh", "-c", command], capture_output=True, text=True, timeout=120)
    if works:
        assert result.stdout.split() == ["None", "40"], result.stderr
    else:
        sentence = "because no file can be created in /dev/shm (No space left on device): make room there"
        assert sentence in result.stdout
        assert f"UserError: worker processes cannot start, {sentence}" in result.stderr


def _trainer(workers, dataset: Numbers) -> None:
    batches = load_in_order(dataset, range(10**6), 2)
    next(batches)
    workers.put([child.pid for child in multiprocessing.active_children()])
    time.sleep(60)


def test_workers_end_when_their_trainer_is_killed():
    workers = CONTEXT.Queue()
    trainer = CONTEXT.Process(target=_trainer, args=(workers, Numbers()))
    trainer.start()
    pids = workers.get(timeout=60)
    trainer.kill()
    trainer.join()
    deadline = time.monotonic() + 20
    while any(is_alive(pid) for pid in pids):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert len(pids) == 2


def test_the_cause_of_a_death_is_that_of_the_first_and_not_of_those_ended_with_it():
    class Ended:
        def __init__(self, exitcode: int | None):
            self.exitcode = exitcode

    def cause(*codes: int | None) -> str | None:
        return worker_processes.cause_of_death([Ended(code) for code in codes])

    assert "signal 9 (SIGKILL)" in cause(-15, None, -9, -15)
    assert cause(-15, 0) == "was killed by signal 15 (SIGTERM)"
    assert cause(None, 0) is None
