"""Decoding only what a crop needs gives training the same pixels as decoding everything."""

import hashlib
import io
import os
import random
import subprocess
import sys
import zipfile

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import resized_crop
from torchvision.transforms.v2.functional import pil_to_tensor

from data.images.augment import TrainTransform, seed_generators, timm_train_transform
from data.images.decode import Crop, EncodedImage, decode
from data.images.partial_decode import decode_rectangle
from recipes.load import load
from recipes.randomness import random_key

PLAIN = ["augment.randaugment=null", "augment.color_jitter=null", "augment.erasing=0"]


@pytest.fixture(scope="module")
def jpegs(dogs_vs_cats_zip) -> list[bytes]:
    with zipfile.ZipFile(dogs_vs_cats_zip) as archive:
        return [archive.read(name) for name in archive.namelist() if name.endswith(".jpg")][::60]


def painted(size: tuple[int, int] = (260, 190), mode: str = "RGB") -> Image.Image:
    """A smooth picture with some edges, as photographs have."""
    random_pixels = np.random.default_rng(0).integers(0, 256, (9, 12, 3), dtype=np.uint8)
    return Image.fromarray(random_pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)


def saved(image: Image.Image, file_format: str = "JPEG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def whole(image: EncodedImage) -> Crop:
    return Crop(0, 0, image.height, image.width)


def by_timm(transform: TrainTransform, image: bytes, epoch: int, sample: int) -> np.ndarray:
    """Return the result of timm's own transform with the same key, int ``[3, size, size]``."""
    decoded, timms = decode(image), timm_train_transform(transform.recipe)
    seed_generators(random_key(transform.recipe.seed, "augment", epoch, sample))
    return np.asarray(timms(decoded)).astype(int)


def difference(transform: TrainTransform, images: list[bytes]) -> np.ndarray:
    """Absolute difference of every pixel to timm's transform, of 255."""
    ours = np.stack([transform(image, 1, sample)[0].numpy() for sample, image in enumerate(images)])
    return abs(ours - np.stack([by_timm(transform, image, 1, sample) for sample, image in enumerate(images)]))


def test_jpegs_are_cropped_and_flipped_as_by_timm_within_rounding(jpegs):
    found = difference(TrainTransform(load("convnext_tiny_in1k", PLAIN)), jpegs)
    assert found.max() <= 2 and found.mean() < 0.01


def test_randaugment_draws_the_same_operations_as_by_timm(jpegs):
    """Some operations, e.g. solarize and equalize, make a rounding difference a visible one at a few pixels."""
    found = difference(TrainTransform(load("convnext_tiny_in1k", ["augment.erasing=0"])), jpegs).mean(axis=(1, 2, 3))
    assert np.median(found) < 0.02 and found.max() < 1


def test_bilinear_is_timms_too(jpegs):
    transform = TrainTransform(load("convnext_tiny_in1k", [*PLAIN, "input.interpolation=bilinear"]))
    assert difference(transform, jpegs[:8]).max() <= 2


@pytest.mark.parametrize("side", [40, 64])
def test_scaled_decoding_changes_less_than_one_level_of_255(jpegs, side):
    """Against full decoding of the crop it takes, which is the drawn one moved to the grid of the scale."""
    random.seed(0)
    found, scales = [], set()
    for data in jpegs:
        image = EncodedImage(data)
        height, width = random.randint(image.height // 2, image.height), random.randint(image.width // 2, image.width)
        crop = Crop(random.randint(0, image.height - height), random.randint(0, image.width - width), height, width)
        scale = image._scale(crop, side, side)
        if scale == 1:
            continue
        scales.add(scale)
        moved = crop.on_grid(scale, -(-image.height // scale), -(-image.width // scale))
        assert abs(moved.top * scale - crop.top) <= scale / 2 and abs(moved.height * scale - crop.height) <= scale
        box = [edge * scale for edge in (moved.top, moved.left, moved.height, moved.width)]
        expected = pil_to_tensor(resized_crop(decode(data), *box, (side, side), 3)).int()
        found.append((image.crop_resized(crop, side, "bicubic").int() - expected).abs().float().mean().item())
    assert scales >= {2} and len(found) >= 10
    assert np.mean(found) < 0.7 and max(found) < 2


@pytest.mark.parametrize(
    "data",
    [
        saved(painted(), quality=90),
        saved(painted(), quality=90, subsampling=0),
        saved(painted(), quality=90, subsampling=1),
        saved(painted((257, 191)), quality=60, progressive=True),
        saved(painted(mode="L")),
        saved(painted(), keep_rgb=True),
        saved(painted(mode="CMYK")),
        saved(painted(), "PNG"),
        saved(painted(mode="P"), "PNG"),
        saved(painted(), "WEBP"),
        saved(painted((3, 500)), quality=80),
        saved(painted((1, 1))),
    ],
    ids=["420", "444", "422", "progressive", "gray", "rgb", "cmyk", "png", "palette", "webp", "thin", "dot"],
)
def test_every_kind_of_image_is_decoded_as_by_pillow(data):
    image = EncodedImage(data)
    expected = np.asarray(decode(data))
    assert (image.height, image.width) == expected.shape[:2]
    side = min(image.height, image.width)
    crop = Crop(image.height - side, image.width - side, side, side)  # no resize: the decoder's own pixels
    found = image.crop_resized(crop, side, "bicubic").permute(1, 2, 0).numpy()
    assert np.array_equal(found, expected[-side:, -side:])


def test_a_rectangle_of_a_photograph_is_decoded_as_in_the_whole_bit_for_bit(jpegs):
    random.seed(0)
    for data in jpegs:
        expected = np.asarray(decode(data))
        for _ in range(8):
            height, width = (random.randint(1, side) for side in expected.shape[:2])
            top, left = random.randint(0, expected.shape[0] - height), random.randint(0, expected.shape[1] - width)
            found = decode_rectangle(data, top, left, height, width)
            assert np.array_equal(found, expected[top : top + height, left : left + width])


@pytest.mark.parametrize(
    "options", [{}, {"subsampling": 0}, {"subsampling": 1}, {"progressive": True}, {"restart_marker_rows": 1}], ids=str
)
def test_a_rectangle_at_any_place_and_of_any_sampling_is_decoded_as_in_the_whole(options):
    data = saved(painted((131, 77)), quality=90, **options)
    expected = np.asarray(decode(data))
    for top, left in ((0, 0), (1, 1), (7, 15), (8, 16), (15, 17), (50, 90)):
        for height, width in ((1, 1), (3, 17), (16, 16), (27, 41), (77 - top, 131 - left)):
            found = decode_rectangle(data, top, left, height, width)
            assert np.array_equal(found, expected[top : top + height, left : left + width])


def test_missing_data_are_noticed_below_the_rectangle_too():
    """Else the same damaged file would be replaced in one epoch and not in another."""
    data = saved(painted(), quality=95)
    assert decode_rectangle(data, 0, 0, 40, 40) is not None
    for size in (len(data) - 1, len(data) * 2 // 3):
        assert decode_rectangle(data[:size], 0, 0, 40, 40) is None


def test_without_the_library_that_decodes_rectangles_pixels_are_the_same(jpegs, monkeypatch):
    transform = TrainTransform(load("convnext_tiny_in1k", PLAIN))
    found = [transform(data, 0, sample)[0] for sample, data in enumerate(jpegs[:8])]
    monkeypatch.setattr("data.images.decode.decode_rectangle", lambda *_: None)
    assert all(torch.equal(transform(data, 0, sample)[0], found[sample]) for sample, data in enumerate(jpegs[:8]))


@pytest.mark.slow
def test_the_library_that_decodes_rectangles_is_loaded_in_silence():
    """Its other extensions would print complaints in every worker; its environment variables are removed again."""
    program = """
import os
from data.images.partial_decode import decode_rectangle
from tests.data.images.test_decode import painted, saved
before = dict(os.environ)
data = saved(painted())
assert decode_rectangle(data, 0, 0, 9, 9).shape == (9, 9, 3)
assert decode_rectangle(b"no JPEG" + data[-2:], 0, 0, 9, 9) is None
assert dict(os.environ) == before
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert run.stdout == run.stderr == ""


def test_what_libjpeg_turbo_complains_about_is_decoded_as_by_pillow():
    """A damaged stretch inside the coded pixels, which Pillow reads with a grey patch."""
    data = bytearray(saved(painted(), quality=90))
    middle = len(data) * 2 // 3
    data[middle : middle + 8] = b"\xff\xd0\x12\x34\xff\xd5\x56\x78"
    image, expected = EncodedImage(bytes(data)), np.asarray(decode(bytes(data)))
    crop = Crop(0, 0, 190, 190)
    assert np.array_equal(image.crop_resized(crop, 190, "bicubic").permute(1, 2, 0).numpy(), expected[:, :190])


@pytest.mark.parametrize("cut", [2, 30, 600, 2000])
def test_a_broken_jpeg_fails_as_it_does_in_pillow(cut):
    data = saved(painted(), quality=95)[:cut]
    with pytest.raises(OSError):
        decode(data)
    with pytest.raises(OSError):
        image = EncodedImage(data)
        image.crop_resized(whole(image), 32, "bicubic")


def test_a_decompression_bomb_is_refused(monkeypatch):
    data = saved(painted())
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 260 * 190 // 2 - 1)
    with pytest.raises(Image.DecompressionBombError):
        EncodedImage(data)


def test_an_image_whose_reader_starts_a_program_is_not_opened():
    """Pillow hands EPS to Ghostscript; a data set must not choose that."""
    with pytest.raises(OSError):
        EncodedImage(saved(painted(), "EPS"))
    with pytest.raises(OSError):
        decode(saved(painted(), "EPS"))


def digest_of_resized() -> str:
    found = hashlib.sha256()
    for size, interpolation in ((224, "bicubic"), (32, "bicubic"), (300, "bilinear")):
        for picture in ((260, 190), (1031, 745), (90, 333)):
            image = EncodedImage(saved(painted(picture), "PNG"))
            found.update(image.crop_resized(whole(image), size, interpolation).contiguous().numpy().tobytes())
    return found.hexdigest()


@pytest.mark.slow
def test_processors_without_vector_instructions_make_the_same_bits():
    command = [sys.executable, "-c", "import tests.data.images.test_decode as t; print(t.digest_of_resized())"]
    plain = subprocess.run(
        command, env={**os.environ, "ATEN_CPU_CAPABILITY": "default"}, capture_output=True, text=True, check=True
    )
    assert plain.stdout.split()[-1] == digest_of_resized()


def test_pixels_are_channels_last():
    """So a micro-batch is filled by copying, and convolutions on a GPU take it as it is."""
    for changes in ([], PLAIN):
        pixels, _ = TrainTransform(load("convnext_tiny_in1k", changes))(saved(painted()), 0, 0)
        assert pixels.dtype == torch.uint8 and pixels.permute(1, 2, 0).is_contiguous()
