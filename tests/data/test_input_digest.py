"""The digest of a step's inputs: the same for every cut, and another one if a single kind of input changes."""

import numpy as np
import pytest
import torch

from data.batches import MicroBatches
from data.input_digest import BITS, INPUT_KINDS, column_digest, input_record, pixel_hashes
from data.reading.shards import ShardSet
from models.stochastic_depth import StochasticDepth
from recipes.load import load

SMALL = ["model.name=test_convnext", "batch.global=60", "batch.slices=4", "augment.erasing=0.5", "mix.probability=0.5"]
KINDS = INPUT_KINDS[:-1]  # those of the batch; the model draws the masks


def digest(shards, micro_batch: int, step: int = 2, *changes: str) -> dict[str, int]:
    """The digest of a step in micro-batches of that size, of which the last one may hold padding."""
    recipe = load("demo", [*SMALL, *changes])
    batches = MicroBatches(ShardSet.open(shards).split("train"), recipe, 0, micro_batch)
    parts = [batches[step, number].digest for number in range(-(-60 // micro_batch))]
    return dict(zip(KINDS, (sum(kind) % 2**BITS for kind in zip(*parts))))


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    from data.writing.sharding import shard

    folder = tmp_path_factory.mktemp("data") / "digits"
    shard("digits", folder, val_fraction=0.2, progress=False)
    return folder


def test_it_does_not_depend_on_the_cut(digits):
    """In four steps, some slices are mixed and others are not; 7 and 16 split slices and pairs."""
    for step in range(4):
        whole = digest(digits, 60, step)
        assert digest(digits, 7, step) == digest(digits, 16, step) == digest(digits, 1, step) == whole
    assert digest(digits, 60, 0) != digest(digits, 60, 1)


@pytest.mark.parametrize(
    "change, kinds",
    [
        ("mix.switch=0", {"mixing"}),
        ("augment.erasing=0.1", {"pixels"}),
        ("augment.crop_scale=[0.5,0.6]", {"pixels"}),
        ("data.shuffle=blocks", {"samples", "labels", "pixels"}),
    ],
)
def test_a_change_of_one_kind_of_input_shows_there(digits, change, kinds):
    before, after = digest(digits, 60), digest(digits, 60, 2, change)
    assert {kind for kind in KINDS if before[kind] != after[kind]} == kinds


@pytest.mark.parametrize("size", [3, 8, 13])
def test_a_single_flipped_bit_changes_the_hash_of_its_image_alone(size):
    random = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (4, size, size, 3), dtype=torch.uint8, generator=random).permute(0, 3, 1, 2)
    before = pixel_hashes(images)
    for channel, row, column, bit in ((0, 0, 0, 0), (2, size - 1, size - 1, 7), (1, size // 2, 0, 3)):
        changed = images.clone(memory_format=torch.channels_last)
        changed[2, channel, row, column] ^= 1 << bit
        assert (pixel_hashes(changed) != before).tolist() == [False, False, True, False]
    positions = np.arange(4)
    swapped = column_digest(positions, before[[1, 0, 2, 3]])
    assert column_digest(positions, before) != swapped  # the same images at other positions


def test_the_digest_of_masks_adds_up_over_micro_batches_and_leaves_out_padding():
    depth = StochasticDepth(0, [0.1, 0.4])

    def masks(first: int, count: int, real: int, step: int = 5) -> int:
        positions = torch.arange(first, first + count)
        depth.draw(step, positions)
        return int(depth.digest((positions < real).float()))

    assert masks(0, 10, 10) == masks(0, 4, 10) + masks(4, 4, 10) + masks(8, 4, 10)
    assert masks(0, 10, 10) != masks(0, 10, 10, step=6)


def test_a_step_records_32_bits_for_each_kind():
    assert input_record([0, 1, 2.0**32 + 5, 2**32 - 1, 7]) == "00000000-00000001-00000005-ffffffff-00000007"
