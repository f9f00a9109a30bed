"""The transforms of an image depend on (seed, epoch, sample) alone and follow timm's distributions."""

import io
import pickle
import random
import resource
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.random_erasing import RandomErasing

from data.batches import MicroBatch
from data.images.augment import NO_BOX, TrainTransform
from data.images.evaluation_view import EvalTransform
from data.on_device import DevicePreprocessor
from recipes.load import load


@pytest.fixture(scope="module")
def image_bytes() -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((160, 120), Image.Resampling.BICUBIC).save(buffer, "JPEG")
    return buffer.getvalue()


def test_the_same_key_gives_the_same_pixels_whatever_was_drawn_before(image_bytes):
    transform = TrainTransform(load("convnext_tiny_in1k", ["input.size=64"]))
    first = transform(image_bytes, 3, 77)
    random.seed(1), np.random.seed(2), torch.manual_seed(3)
    again = TrainTransform(load("convnext_tiny_in1k", ["input.size=64"]))(image_bytes, 3, 77)
    assert torch.equal(first[0], again[0]) and first[1] == again[1]
    assert first[0].dtype == torch.uint8 and first[0].shape == (3, 64, 64)


@pytest.mark.parametrize("changes", [[], ["augment.randaugment=null"]], ids=["RandAugment", "colour jitter"])
def test_a_transform_reaches_a_process_that_is_started_afresh(image_bytes, changes):
    """Loader workers that are not forked, as on macOS, receive it by pickle."""
    transform = TrainTransform(load("convnext_tiny_in1k", ["input.size=64", *changes]))
    arrived = pickle.loads(pickle.dumps(transform))
    assert all(
        torch.equal(arrived(image_bytes, 0, sample)[0], transform(image_bytes, 0, sample)[0]) for sample in range(30)
    )


@pytest.mark.parametrize("changes, epoch, sample", [([], 4, 77), ([], 3, 78), (["seed=1"], 3, 77)])
def test_another_epoch_sample_or_seed_is_augmented_differently(image_bytes, changes, epoch, sample):
    settings = ["input.size=64"]
    one, _ = TrainTransform(load("convnext_tiny_in1k", settings))(image_bytes, 3, 77)
    other, _ = TrainTransform(load("convnext_tiny_in1k", settings + changes))(image_bytes, epoch, sample)
    assert not torch.equal(one, other)


def test_no_key_makes_randaugment_fail(image_bytes):
    """Some versions of the imaging library refuse operations that this policy draws now and then."""
    transform = TrainTransform(load("convnext_tiny_in1k", ["input.size=32"]))
    for sample in range(2000):
        transform(image_bytes, 0, sample)


def test_erased_boxes_have_timms_distribution(image_bytes):
    recipe = load("convnext_tiny_in1k", ["input.size=64", "augment.randaugment=null"])
    transform = TrainTransform(recipe)
    ours = np.array(
        [box[2] * box[3] / 64**2 for box in (transform(image_bytes, 0, sample)[1] for sample in range(3000))]
    )
    random.seed(0)
    theirs = []
    erase = RandomErasing(0.25, mode="const", device="cpu")
    for _ in range(3000):
        theirs.append((erase(torch.ones(3, 64, 64))[0] == 0).float().mean().item())
    assert (ours > 0).mean() == pytest.approx(0.25, abs=0.04)
    assert ours[ours > 0].mean() == pytest.approx(np.mean([area for area in theirs if area]), abs=0.01)


def test_evaluation_can_have_a_size_and_a_filter_of_its_own(image_bytes):
    """Train at 160, evaluate at 224: what is evaluated is what a recipe of that size evaluates."""
    keys = ["input.size=160", "input.eval_size=224", "input.interpolation=bilinear", "input.eval_interpolation=bicubic"]
    recipe = load("convnext_tiny_in1k", keys)
    expected = EvalTransform(load("convnext_tiny_in1k", ["input.size=224"]))(image_bytes)
    assert torch.equal(EvalTransform(recipe)(image_bytes), expected)
    same = load("convnext_tiny_in1k", ["input.size=160", "input.interpolation=bilinear"])
    for ours, theirs in zip(TrainTransform(recipe)(image_bytes, 0, 1), TrainTransform(same)(image_bytes, 0, 1)):
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))
    assert EvalTransform(load("convnext_tiny_in1k", ["input.eval_size=384"]))(image_bytes).shape == (3, 384, 384)


def test_erasing_can_be_switched_off(image_bytes):
    transform = TrainTransform(load("convnext_tiny_in1k", ["input.size=32", "augment.erasing=0"]))
    assert all(transform(image_bytes, 0, sample)[1] == NO_BOX for sample in range(50))


def test_the_noise_of_erased_boxes_is_standard_normal():
    noise = DevicePreprocessor(load("demo"), torch.device("cpu")).noise
    assert noise.mean().item() == pytest.approx(0, abs=0.01) and noise.std().item() == pytest.approx(1, abs=0.01)
    assert (noise.abs() > 1.959964).float().mean().item() == pytest.approx(0.05, abs=0.003)
    for distance in (1, 2, 32, 1024):
        assert torch.corrcoef(torch.stack([noise[:-distance], noise[distance:]]))[0, 1].abs() < 0.005


def test_exactly_the_box_is_erased_with_noise_that_the_key_decides():
    def erased(noise_key: int) -> torch.Tensor:
        row = torch.zeros(1, dtype=torch.int64)
        pixels, boxes = torch.zeros(1, 3, 32, 32, dtype=torch.uint8), [(4, 5, 20, 10)]
        batch = MicroBatch(
            0, row, row, torch.ones(1), pixels, boxes, [noise_key], row, row, row, torch.ones(1), mixes=[]
        )
        return DevicePreprocessor(load("demo"), torch.device("cpu")).images(batch)[0]

    image = erased(12345)
    assert torch.equal(image, erased(12345)) and not torch.equal(image, erased(12346))
    inside = torch.zeros(32, 32, dtype=torch.bool)
    inside[4:24, 5:15] = True
    assert torch.equal(image != erased(99), inside.expand(3, -1, -1))
    assert len(torch.unique(image[:, ~inside])) == 3  # one value per channel: black after normalisation


def test_normalisation_is_that_of_imagenet():
    preprocessor = DevicePreprocessor(load("convnext_tiny_in1k"), torch.device("cpu"))
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(1, 3, 16, 16).contiguous()
    mean, std = torch.tensor([0.485, 0.456, 0.406]).view(3, 1, 1), torch.tensor([0.229, 0.224, 0.225]).view(3, 1, 1)
    torch.testing.assert_close(preprocessor.normalised(pixels), (pixels.float() / 255 - mean) / std)


@pytest.mark.parametrize("size, warped", [(64, False), (384, True)])
def test_evaluation_crops_below_384_and_warps_from_there_on(size, warped):
    wide = Image.new("RGB", (800, 400), "black")
    wide.paste("white", (0, 0, 60, 400))  # a centre crop leaves this border out, and warping keeps it
    buffer = io.BytesIO()
    wide.save(buffer, "PNG")
    view = EvalTransform(load("convnext_tiny_in1k", [f"input.size={size}"]))(buffer.getvalue())
    assert view.shape == (3, size, size)
    assert (view[:, size // 2, 0] > 200).all() == warped


@pytest.mark.skipif(sys.platform != "linux", reason="memory is limited as on Linux")
@pytest.mark.parametrize("size", [(1, 6000), (6000, 1)])
def test_the_evaluation_of_a_strip_takes_little_memory(size):
    """timm's transform alone would make an image of 1.6 GB. The middle of the strip is what it would show."""
    pixels = np.random.default_rng(0).integers(0, 256, (max(size), 1, 3), np.uint8).repeat(2, 1)[:, :1]
    pixels[2999:3001] = 255
    buffer = io.BytesIO()
    Image.fromarray(pixels if size[0] == 1 else pixels.transpose(1, 0, 2)).save(buffer, "PNG")
    transform = EvalTransform(load("convnext_tiny_in1k", ["input.size=224"]))
    before = resource.getrlimit(resource.RLIMIT_AS)
    in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (in_use + 400 * 2**20, before[1]))
    try:
        view = transform(buffer.getvalue())
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)
    assert view.shape == (3, 224, 224) and (view[:, 110:114, 110:114] > 200).all()


def test_alternating_flips_mirror_each_image_in_every_other_epoch(image_bytes):
    """Half of the images begin with a mirrored epoch, chosen by the seed. The crop's draws are another matter."""
    plain = ["augment.crop=center", "augment.randaugment=null", "augment.color_jitter=0", "augment.erasing=0"]
    settings = ["input.size=64", *plain, "augment.flip_mode=alternate"]
    transform = TrainTransform(load("convnext_tiny_in1k", settings))
    unchanged = TrainTransform(load("convnext_tiny_in1k", [*settings, "augment.flip=0"]))(image_bytes, 0, 0)[0]
    mirrored = unchanged.flip(2)
    began_mirrored = 0
    for sample in range(400):
        views = [transform(image_bytes, epoch, sample)[0] for epoch in range(4)]
        began_mirrored += torch.equal(views[0], mirrored)
        expected = [mirrored, unchanged] if torch.equal(views[0], mirrored) else [unchanged, mirrored]
        assert all(torch.equal(view, expected[epoch % 2]) for epoch, view in enumerate(views))
    assert 160 <= began_mirrored <= 240
    assert any(
        not torch.equal(
            TrainTransform(load("convnext_tiny_in1k", [*settings, "seed=1"]))(image_bytes, 0, sample)[0],
            transform(image_bytes, 0, sample)[0],
        )
        for sample in range(5)
    )
