"""An item arrives as it was sent, whatever its tensors are, and through the queue where no slot fits."""

import pickle

import pytest
import torch

from data.shared_slots import SharedSlots, SlotMessage

TENSORS = {
    "channels last": torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 4, 4, 3).permute(0, 3, 1, 2),
    "a view with gaps": torch.arange(20.0)[::3],
    "a part of a storage": torch.arange(1000)[10:12],
    "an expanded one": torch.ones(1, dtype=torch.float64).expand(3, 5),
    "without elements": torch.empty(0, 3, dtype=torch.int64),
    "a number": torch.tensor(3.5, dtype=torch.bfloat16),
    "bools": torch.tensor([True, False, True]),
}


def arrived(item, slots: SharedSlots | None, slot: int = 0):
    """Send an item as a queue does, by pickle."""
    return pickle.loads(pickle.dumps(SlotMessage(item, slots, slot))).item()


@pytest.mark.parametrize("item_bytes", [4096, 70, None], ids=["in a slot", "too large for a slot", "without slots"])
def test_every_kind_of_tensor_arrives_equal_with_its_memory_format(item_bytes):
    slots = SharedSlots(2, item_bytes) if item_bytes else None
    found = arrived((TENSORS, "text", [1, None]), slots, slot=1)
    assert found[1:] == ("text", [1, None]) and list(found[0]) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert found[0][name].dtype == tensor.dtype and torch.equal(found[0][name], tensor), name
    assert found[0]["channels last"].stride() == TENSORS["channels last"].stride()


def test_only_what_fits_no_slot_makes_a_message_large():
    images = torch.zeros(100_000, dtype=torch.uint8)
    assert len(pickle.dumps(SlotMessage(images, SharedSlots(1, 100_000), 0))) < 1000
    assert len(pickle.dumps(SlotMessage(images, SharedSlots(1, 50_000), 0))) > 100_000


def test_an_item_keeps_its_values_when_its_slot_is_used_again():
    slots = SharedSlots(2, 1000)
    first = arrived(torch.arange(10), slots)
    second = arrived(torch.arange(10) + 100, slots)
    assert torch.equal(first, torch.arange(10)) and torch.equal(second, torch.arange(10) + 100)
