"""TrivialAugment is torchvision's, and three-augment does what the code of DeiT III does."""

import collections
import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import (
    Compose,
    Grayscale,
    InterpolationMode,
    PILToTensor,
    RandomCrop,
    RandomHorizontalFlip,
    TrivialAugmentWide,
)

from data.images.augment import TrainTransform, seed_generators
from recipes.errors import UserError
from recipes.load import load
from recipes.randomness import random_key

SMALL = ["input.size=32", "augment.crop=pad", "augment.erasing=0", "augment.randaugment=null"]


@pytest.fixture(scope="module")
def image() -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((32, 32), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def encoded(image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
def test_trivial_augment_is_torchvisions_bit_for_bit(image, encoded, interpolation):
    recipe = load("convnext_tiny_in1k", [*SMALL, "augment.policy=trivial", f"input.interpolation={interpolation}"])
    transform = pickle.loads(pickle.dumps(TrainTransform(recipe)))  # as loader workers that are not forked receive it
    policy = TrivialAugmentWide(interpolation=InterpolationMode(interpolation))
    theirs = Compose([RandomCrop(32, padding=4), RandomHorizontalFlip(), policy, PILToTensor()])
    for sample in range(100):
        pixels, _ = transform(encoded, 0, sample)
        seed_generators(random_key(0, "augment", 0, sample))
        assert torch.equal(pixels, theirs(image))


def test_three_augment_takes_each_operation_of_deit_in_a_third_of_the_cases(image, encoded, monkeypatch):
    """Greyscale and solarising as torchvision and Pillow do it; blur of a radius that is uniform from 0.1 to 2."""
    changes = ["augment.policy=three", "augment.color_jitter=null", "augment.pad=0", "augment.flip=0"]
    transform = TrainTransform(load("convnext_tiny_in1k", [*SMALL, *changes]))
    radii = []
    blur = ImageFilter.GaussianBlur
    monkeypatch.setattr(ImageFilter, "GaussianBlur", lambda radius: radii.append(radius) or blur(radius))
    grey, solarised = (PILToTensor()(change(image)) for change in (Grayscale(3), ImageOps.solarize))
    kinds = collections.Counter()
    for sample in range(600):
        before = len(radii)
        pixels, _ = transform(encoded, 0, sample)
        if len(radii) > before:
            assert torch.equal(pixels, PILToTensor()(image.filter(blur(radii[-1]))))
            kinds["blur"] += 1
        else:
            assert torch.equal(pixels, grey) or torch.equal(pixels, solarised)
            kinds["grey" if torch.equal(pixels, grey) else "solarised"] += 1
    assert all(count == pytest.approx(200, abs=40) for count in kinds.values()) and len(kinds) == 3
    assert np.quantile(radii, [0, 0.5, 1]) == pytest.approx([0.1, 1.05, 2.0], abs=0.12)


def test_colour_jitter_follows_three_augment_and_not_trivial_augment():
    def names(*changes: str) -> list[str]:
        transform = TrainTransform(load("convnext_tiny_in1k", [*SMALL, "augment.color_jitter=0.3", *changes]))
        return [type(one.change).__name__ for one in transform.array_transform.transforms]

    assert names("augment.policy=three") == ["AutoAugment", "ColorJitter"]
    assert names("augment.policy=trivial") == ["TrivialAugmentWide"]
    assert names() == ["ColorJitter"]


def test_two_policies_at_once_are_refused():
    with pytest.raises(UserError, match="takes the place of RandAugment: add augment.randaugment=null"):
        load("demo", ["augment.policy=trivial"])
