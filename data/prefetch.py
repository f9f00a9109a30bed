"""Copying micro-batches to their device ahead of time: the next copy runs while the current one is trained on."""

from collections.abc import Generator, Iterator

import torch

from data.batches import MicroBatch


def prefetch_to_device(batches: Iterator[MicroBatch], device: torch.device) -> Generator[MicroBatch, None, None]:
    """Yield `batches` on `device`; the copy of each begins before its predecessor is yielded.

    Copies run on a stream of their own. From pinned memory they overlap with computation, and the computing stream
    waits only for the batch that it needs.
    """
    streams = torch.get_device_module(device)
    copy_stream = streams.Stream()

    def copied(batch: MicroBatch) -> MicroBatch:
        with streams.stream(copy_stream):
            return batch.to(device)

    def ready(batch: MicroBatch) -> MicroBatch:
        compute_stream = streams.current_stream()
        compute_stream.wait_stream(copy_stream)
        if device.type == "cuda":
            # The memory belongs to the copy stream: without this, it could be reused while the computation still reads
            # it.
            batch.record_stream(compute_stream)
        return batch

    upcoming = None
    for batch in batches:
        # The compute stream waits for all copies that have begun, so the wait has to come before the next copy begins.
        current = None if upcoming is None else ready(upcoming)
        upcoming = copied(batch)
        if current is not None:
            yield current
    if upcoming is not None:
        yield ready(upcoming)
