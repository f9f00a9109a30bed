"""RandAugment's fast colour operations give timm's results bit for bit."""

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment

from data.images import randaugment_color as color

SIZES = [(224, 224), (61, 33), (2, 9), (9, 2), (3, 3), (1, 1)]
FACTORS = [(factor,) for factor in (0.0, 0.1, 0.19, 1.0, 1.5, 1.81, 1.9)]


@pytest.mark.parametrize(
    "theirs, ours, amounts",
    [
        (auto_augment.invert, color.invert, [()]),
        (auto_augment.solarize, color.solarize, [(threshold,) for threshold in (0, 1, 26, 128, 255, 256)]),
        (auto_augment.solarize_add, color.solarize_add, [(add,) for add in (0, 1, 99, 110, 128)]),
        (auto_augment.posterize, color.posterize, [(bits,) for bits in range(9)]),
        (auto_augment.brightness, color.brightness, FACTORS),
        (auto_augment.contrast, color.contrast, FACTORS),
        (auto_augment.sharpness, color.sharpness, FACTORS),
    ],
    ids=["invert", "solarize", "solarize_add", "posterize", "brightness", "contrast", "sharpness"],
)
def test_every_amount_that_can_be_drawn_gives_timms_pixels(theirs, ours, amounts):
    random = np.random.default_rng(0)
    for width, height in SIZES:
        for brightest in (255, 90, 1, 0):
            noise = random.integers(0, brightest, (height, width, 3), dtype=np.uint8, endpoint=True)
            for amount in amounts:
                assert np.array_equal(ours(noise, *amount), theirs(Image.fromarray(noise), *amount)), (
                    amount,
                    width,
                    height,
                    brightest,
                )
