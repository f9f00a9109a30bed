"""Handing items with tensors from a loader worker to the trainer, through memory that both share from the start.

torch would put every tensor into a new file in /dev/shm and pass it on through a socket in TMPDIR. That happens in a
background thread of the worker. If it fails there, the trainer waits for ever. It fails where /dev/shm is small (64 MiB
in a Docker container), where TMPDIR is too long for the path of a socket, and where the limit on open files is low.

Here the trainer allocates all slots before it starts the workers, as anonymous memory that its children inherit. A
worker copies the tensors of an item into a free slot, and only a small message goes through the queue.
"""

import io
import mmap
import pickle
from collections.abc import Sequence
from itertools import count
from typing import Any, NamedTuple
from weakref import WeakValueDictionary

import torch
from torch import Tensor

_ALIGNMENT = 64  # bytes; a tensor of any dtype may begin there


class SharedSlots:
    """Memory for items on their way, one item per slot; processes forked later share it."""

    def __init__(self, slots: int, item_bytes: int):
        """Reserve the memory; the system provides each page when it is first written.

        Args:
            slots: number of slots.
            item_bytes: expected size of an item's tensors; larger items travel inside their message, which is slower.

        Raises:
            OSError: the system refuses that much memory.
        """
        size = max(1, -(-item_bytes // _ALIGNMENT)) * _ALIGNMENT
        self.memory = torch.frombuffer(mmap.mmap(-1, slots * size), dtype=torch.uint8).view(slots, size)
        self.number = next(_numbers)
        _of_this_process[self.number] = self

    def __len__(self) -> int:
        return len(self.memory)

    def __reduce__(self) -> tuple[Any, ...]:
        # A message carries a reference to the memory, never its contents.
        return _slots, (self.number,)


_numbers = count()
_of_this_process: WeakValueDictionary[int, SharedSlots] = WeakValueDictionary()


def _slots(number: int) -> SharedSlots:
    return _of_this_process[number]


class _Layout(NamedTuple):
    """Where the elements of one tensor are in a piece of memory."""

    dtype: torch.dtype
    size: Sequence[int]
    stride: Sequence[int]
    start: int  # bytes
    stop: int

    def view(self, memory: Tensor) -> Tensor:
        """Return the tensor on that memory, uint8 ``[bytes]``."""
        return memory[self.start : self.stop].view(self.dtype).as_strided(self.size, self.stride)


class SlotMessage:
    """One item on its way to the trainer: pickled without its tensors, which are in a slot."""

    def __init__(self, item: object, slots: SharedSlots | None, slot: int):
        """Copy the tensors of `item` into that slot, or into the message if there is no slot or it is too small."""
        stream, tensors = io.BytesIO(), list[Tensor]()
        _Pickler(stream, tensors).dump(item)
        self.pickled = stream.getvalue()
        self.layouts: list[_Layout] = []
        end = 0
        for tensor in tensors:
            start = -(-end // _ALIGNMENT) * _ALIGNMENT
            end = start + tensor.nbytes
            # The strides of a dense tensor are kept, e.g. channels last; gaps are closed.
            stride = torch.empty_like(tensor, device="meta").stride()
            self.layouts.append(_Layout(tensor.dtype, tuple(tensor.shape), stride, start, end))
        fits = slots is not None and end <= slots.memory.shape[1]
        self.slots, self.slot = (slots, slot) if fits else (None, 0)
        memory = self.slots.memory[slot] if self.slots else torch.empty(end, dtype=torch.uint8)
        for layout, tensor in zip(self.layouts, tensors):
            layout.view(memory).copy_(tensor)
        self.contents = b"" if self.slots else memory.numpy().tobytes()

    def item(self) -> Any:
        """Return the item with copies of its tensors, after which the slot is free."""
        return self._item([layout.view(self._memory()).clone() for layout in self.layouts])

    def pin_memory(self) -> Any:
        """Return the item with its tensors in page-locked memory; the thread of torch's DataLoader calls this."""
        return self._item([layout.view(self._memory()).pin_memory() for layout in self.layouts])

    def _memory(self) -> Tensor:
        if self.slots is not None:
            return self.slots.memory[self.slot]
        return torch.frombuffer(bytearray(self.contents), dtype=torch.uint8) if self.contents else torch.empty(0).byte()

    def _item(self, tensors: list[Tensor]) -> Any:
        return _Unpickler(io.BytesIO(self.pickled), tensors).load()


class _Pickler(pickle.Pickler):
    """Collects the tensors of an object and pickles a number for each."""

    def __init__(self, stream: io.BytesIO, tensors: list[Tensor]):
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self.tensors = tensors

    def persistent_id(self, obj: object) -> int | None:
        if not isinstance(obj, Tensor):
            return None
        self.tensors.append(obj)
        return len(self.tensors) - 1


class _Unpickler(pickle.Unpickler):
    """Puts tensors in the place of their numbers."""

    def __init__(self, stream: io.BytesIO, tensors: list[Tensor]):
        super().__init__(stream)
        self.tensors = tensors

    def persistent_load(self, number: int) -> Tensor:
        return self.tensors[number]
