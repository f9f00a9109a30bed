"""RandAugment draws what timm's draws, and its results differ from timm's by rounding only."""

import random

import numpy as np
import pytest
from PIL import Image

from data.images.augment import TrainTransform, seed_generators, timm_train_transform
from data.images.randaugment import FAST_OPERATIONS
from recipes.load import load


def test_the_recipe_of_the_paper_uses_all_of_the_faster_code():
    (policy,) = TrainTransform(load("convnext_tiny_in1k")).array_transform.transforms
    assert set(FAST_OPERATIONS.values()) < {operation.aug_fn for operation in policy.ops}
    assert not set(FAST_OPERATIONS) & {operation.aug_fn for operation in policy.ops}


@pytest.mark.parametrize(
    "policy", ["rand-m9-mstd0.5-inc1", "rand-m15-n3", "rand-m9-tweights"]
)  # with amounts up to the limits
def test_the_same_seed_draws_and_shows_what_timms_policy_does(policy):
    recipe = load("convnext_tiny_in1k", [f"augment.randaugment={policy}"])
    (ours,) = TrainTransform(recipe).array_transform.transforms
    theirs = timm_train_transform(recipe).transforms[2]
    assert type(ours) is type(theirs)
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    for seed in range(300):
        seed_generators(seed)
        found = ours(noise).astype(int)
        drawn = random.random()
        seed_generators(seed)
        expected = np.asarray(theirs(Image.fromarray(noise)))
        assert drawn == random.random()  # so both drew the same number of times
        assert np.median(abs(found - expected)) == 0 and abs(found - expected).mean() < 0.5, seed
