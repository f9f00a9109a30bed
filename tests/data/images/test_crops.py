"""A padded crop is torchvision's, draw by draw and pixel by pixel."""

import io

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import Compose, InterpolationMode, PILToTensor, RandomCrop, RandomHorizontalFlip, Resize

from data.images.augment import TrainTransform, seed_generators
from data.images.decode import EncodedImage, decode
from recipes.load import load
from recipes.randomness import random_key

PLAIN = ["augment.randaugment=null", "augment.color_jitter=null", "augment.erasing=0", "augment.crop=pad"]


def encoded(width: int, height: int) -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


def by_torchvision(image: bytes, crop: list, sample: int) -> torch.Tensor:
    seed_generators(random_key(0, "augment", 3, sample))
    pixels: torch.Tensor = Compose([*crop, RandomHorizontalFlip(), PILToTensor()])(decode(image))
    return pixels


@pytest.mark.parametrize("mode", ["constant", "reflect"])
@pytest.mark.parametrize("pad", [4, 0])
def test_crops_of_small_images_are_torchvisions_bit_for_bit(mode, pad):
    """CIFAR's images need no resizing, so nothing is rounded."""
    image = encoded(32, 32)
    changes = ["input.size=32", f"augment.pad={pad}", f"augment.pad_mode={mode}"]
    transform = TrainTransform(load("convnext_tiny_in1k", PLAIN + changes))
    reference = [RandomCrop(32, padding=pad, padding_mode=mode)]
    for sample in range(40):
        pixels, _ = transform(image, 3, sample)
        assert torch.equal(pixels, by_torchvision(image, reference, sample))
        assert pixels.is_contiguous(memory_format=torch.channels_last) or pixels.stride(0) == 1


def test_larger_images_are_resized_by_their_shorter_side_first():
    """The simple random crop of DeiT III: `Resize` and a padded crop."""
    image = encoded(150, 100)
    transform = TrainTransform(load("convnext_tiny_in1k", [*PLAIN, "input.size=48", "augment.pad_mode=reflect"]))
    reference = [Resize(48, InterpolationMode.BICUBIC), RandomCrop(48, padding=4, padding_mode="reflect")]
    for sample in range(20):
        difference = transform(image, 3, sample)[0].int() - by_torchvision(image, reference, sample).int()
        assert difference.abs().max() <= 2  # the resize of torch and the one of Pillow round differently


@pytest.mark.parametrize(("width", "height"), [(6000, 1), (1, 6000)])
def test_a_strip_is_cut_before_it_is_resized(width, height):
    """Resized as a whole, it would be an image of 892 MiB. Its middle is kept, as in evaluation."""
    resized = EncodedImage(encoded(width, height)).resized(224, "bicubic")
    assert sorted(resized.shape[1:]) == [224, 22400]
    transform = TrainTransform(load("convnext_tiny_in1k", [*PLAIN, "input.size=224"]))
    assert transform(encoded(width, height), 3, 0)[0].shape == (3, 224, 224)


@pytest.mark.parametrize(("width", "height"), [(100, 1), (2, 200), (70, 50)])
def test_every_other_image_is_resized_as_a_whole(width, height):
    image = encoded(width, height)
    size, resize = 32 * max(width, height) // min(width, height), Resize(32, InterpolationMode.BICUBIC)
    resized = EncodedImage(image).resized(32, "bicubic")
    assert max(resized.shape) == size
    assert (resized.int() - PILToTensor()(resize(decode(image))).int()).abs().max() <= 2
