"""Every cut covers the global batch once, or is refused in one sentence."""

import pytest

from launcher.cut import cut_batch
from recipes.errors import UserError
from recipes.load import load


@pytest.mark.parametrize("world_size", [1, 2, 3, 5, 7, 64, 512, 4096])
@pytest.mark.parametrize("micro_batch", [None, 1, 4, 7])
def test_every_position_is_covered_once_and_padding_is_small(world_size, micro_batch):
    recipe = load("convnext_tiny_in1k")
    share = -(-4096 // world_size)
    if micro_batch and micro_batch > share:
        pytest.skip("larger than the share")
    cut = cut_batch(recipe, world_size, micro_batch, largest=64)
    positions = [
        p for rank in range(world_size) for p in range(cut.first_position(rank), cut.first_position(rank) + cut.share)
    ]
    assert sorted(positions) == list(range(4096 + cut.padding))
    assert cut.padding < world_size * (cut.accumulation if micro_batch is None else cut.micro_batch) + world_size
    assert micro_batch or cut.micro_batch <= 64


def test_the_cut_is_said_as_the_readme_says_it():
    recipe = load("convnext_tiny_in1k")
    assert str(cut_batch(recipe, 2, 64, largest=64)) == "4096 = 2 processes × 64 × 32 accumulation steps"
    assert str(cut_batch(recipe, 64, None, largest=64)) == "4096 = 64 processes × 64 × 1 accumulation step"
    assert str(cut_batch(recipe, 1, None, largest=128)) == "4096 = 1 process × 128 × 32 accumulation steps"
    assert str(cut_batch(recipe, 3, 64, largest=64)) == "4096 = 3 processes × 64 × 22 accumulation steps − 128 padding"


@pytest.mark.parametrize(
    "world_size, micro_batch, part", [(4097, None, "at most 4096"), (2, 4096, "1 to 2048"), (1, 0, "1 to 4096")]
)
def test_a_cut_that_cannot_be_made_is_refused(world_size, micro_batch, part):
    with pytest.raises(UserError, match=part) as caught:
        cut_batch(load("convnext_tiny_in1k"), world_size, micro_batch, largest=64)
    assert "\n" not in str(caught.value)
