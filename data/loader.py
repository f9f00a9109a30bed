"""Preparing micro-batches and evaluation batches ahead of time in worker processes.

Nothing here may hang or end in a traceback. A worker that dies, memory that runs out and a system that refuses more
processes end the command with one sentence.
"""

import atexit
import multiprocessing
import multiprocessing.queues
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from multiprocessing.process import BaseProcess
from typing import Any, Generic, Protocol, TypeVar

from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.batches import EvalBatches, MicroBatch, MicroBatches
from data.feature_batches import FeatureEvalBatches
from data.shared_slots import SharedSlots, SlotMessage
from data.worker_processes import CONTEXT, cause_of_death, end_with_parent, starting_processes, why_no_start
from recipes.errors import UserError

_AHEAD = 2  # items per worker that are ready or being prepared
_FEWER = "fewer --workers (0: none)"

Place = TypeVar("Place", contravariant=True)
Item = TypeVar("Item", covariant=True)


class Loadable(Protocol[Place, Item]):
    """A data set whose items are prepared one by one."""

    @property
    def item_bytes(self) -> int:
        """Upper limit for the size of an item's tensors in bytes."""

    def __getitem__(self, place: Place, /) -> Item: ...


def load_steps(batches: MicroBatches, steps: range, accumulation: int, workers: int, pin: bool) -> Iterator[MicroBatch]:
    """Yield the micro-batches of optimizer steps `steps` in order, prepared ahead by `workers` processes.

    Args:
        batches: the micro-batches of this process.
        steps: optimizer steps.
        accumulation: micro-batches per step.
        workers: number of processes; 0: each micro-batch is prepared when it is asked for.
        pin: whether to return page-locked memory.

    Raises:
        UserError: the workers cannot start, one of them dies, or storage fails.
    """
    places = ((step, number) for step in steps for number in range(accumulation))
    return load_in_order(batches, places, workers, pin)


def load_evaluation(
    batches: EvalBatches | FeatureEvalBatches, workers: int, pin: bool
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all evaluation batches in order; arguments and errors are those of `load_steps`."""
    return load_in_order(batches, range(len(batches)), min(workers, len(batches)), pin)


def load_in_order(
    dataset: Loadable[Any, Item], places: Iterable[Any], workers: int, pin: bool = False
) -> Iterator[Item]:
    """Yield ``dataset[place]`` for each place in order; workers start at once and stay two items each ahead.

    Raises:
        UserError: as in `load_steps`.
    """
    if workers == 0:
        return iter(
            DataLoader(_Mapped(dataset), sampler=places, batch_size=None, collate_fn=_unchanged, pin_memory=pin)
        )
    try:
        # One slot more than items in flight: torch asks for the next item right before it returns one.
        slots = SharedSlots(_AHEAD * workers + 1, dataset.item_bytes) if sys.platform == "linux" else None
    except OSError as error:
        raise UserError(why_no_start(error, _FEWER)) from None
    tasks = ((number % (_AHEAD * workers + 1), place) for number, place in enumerate(places))
    loader = DataLoader(
        _ToSlots(dataset, slots),
        sampler=tasks,
        batch_size=None,
        collate_fn=_unchanged,
        pin_memory=pin,
        num_workers=workers,
        prefetch_factor=_AHEAD,
        multiprocessing_context=CONTEXT,
        worker_init_fn=partial(_begin_worker, os.getpid()),
    )
    return _received(*_start(loader))


class _Mapped(Dataset[Item], Generic[Item]):
    """A data set as torch's DataLoader wants it."""

    def __init__(self, dataset: Loadable[Any, Item]):
        self.dataset = dataset

    def __getitem__(self, place: Any) -> Item:
        return self.dataset[place]


class _ToSlots(Dataset[SlotMessage | UserError]):
    """The data set that a worker sees: a task is the number of a free slot and a place; its item is a message."""

    def __init__(self, dataset: Loadable[Any, object], slots: SharedSlots | None):
        self.dataset, self.slots = dataset, slots

    def __getitem__(self, task: tuple[int, Any]) -> SlotMessage | UserError:
        slot, place = task
        try:
            return SlotMessage(self.dataset[place], self.slots, slot)
        except UserError as error:
            # Returned, not raised: torch would wrap the sentence in a traceback.
            return error
        except MemoryError:
            return UserError(f"a loader worker ran out of memory: give {_FEWER}")


def _unchanged(item: Item) -> Item:  # type: ignore[misc]  # covariant, as in the data sets; harmless in a function
    return item


def _start(loader: DataLoader[Any]) -> tuple[Iterator[Any], list[BaseProcess]]:
    """Start the workers of a loader; return what it yields, and the processes."""
    handler = signal.getsignal(signal.SIGCHLD)
    try:
        with starting_processes(_FEWER) as workers:
            iterator = iter(loader)
    finally:
        # torch's handler would raise in the trainer at whatever it does when a worker dies, even while it saves a
        # checkpoint. Without the handler, the wait for the next item notices the death.
        if signal.getsignal(signal.SIGCHLD) != handler and handler is not None:
            signal.signal(signal.SIGCHLD, handler)
    return iterator, workers


def _received(iterator: Iterator[Any], workers: list[BaseProcess]) -> Iterator[Any]:
    """Yield the items that workers have put into slots.

    Raises:
        UserError: a worker has died, or has returned a `UserError`.
    """
    failure = None
    try:
        for received in iterator:
            if isinstance(received, UserError):
                failure = received
                break
            # With pinned memory, torch has already called `SlotMessage.pin_memory`, which returns the item.
            yield received.item() if isinstance(received, SlotMessage) else received
    except (RuntimeError, OSError):
        cause = cause_of_death(workers)
        if cause is None:
            raise
        failure = UserError(f"a loader worker {cause}: give {_FEWER}, or more memory")
    if failure:
        # Ends the other workers. An exception that held the iterator would leave that to the garbage collector, and
        # torch then waits five seconds for each worker, because its queues are collected first.
        del iterator
        raise failure


def _begin_worker(trainer: int, _worker: int) -> None:
    # Ctrl-C reaches every process of a terminal, but the trainer still finishes its step and needs its workers for it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    end_with_parent(trainer)
    # On an error, a queue's thread drops the message, and the trainer would wait for it for ever. So the worker ends
    # itself, because the trainer notices the death of a worker.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_this_worker)  # type: ignore


def _end_this_worker(error: BaseException, _message: object) -> None:
    print(f"a loader worker cannot hand over a batch: {error}", file=sys.stderr, flush=True)
    os._exit(1)


@atexit.register
def _end_workers() -> None:
    """Kill loader workers that are left after an error: Python would send SIGTERM, which they ignore, and wait."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
