"""Micro-batches on their device, the next one on its way while this one is computed with."""

from collections.abc import Iterator

import torch

from data.batches import MicroBatch


def prefetch_to_device(batches: Iterator[MicroBatch], device: torch.device) -> Iterator[MicroBatch]:
    """Yield `batches` on `device`, each copied on a stream of its own before the one ahead of it is handed out.

    From pinned memory the copy runs while the device computes; the stream that computes waits for its own batch only.
    """
    streams = torch.get_device_module(device)
    copying = streams.Stream()

    def copied(batch: MicroBatch) -> MicroBatch:
        with streams.stream(copying):
            return batch.to(device)

    def ready(batch: MicroBatch) -> MicroBatch:
        computing = streams.current_stream()
        computing.wait_stream(copying)
        if device.type == "cuda":
            batch.record_stream(computing)  # or its memory could be given away while it is still read
        return batch

    coming = None
    for batch in batches:
        now = None if coming is None else ready(coming)  # waits for the copies begun so far: before the next one begins
        coming = copied(batch)
        if now is not None:
            yield now
    if coming is not None:
        yield ready(coming)
