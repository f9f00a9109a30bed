"""`input.upright`: a run sees images as their EXIF orientation says, as if they had been stored upright."""

import base64
import io

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from data.images.augment import TrainTransform
from data.images.decode import Crop, EncodedImage, decode
from data.images.evaluation_view import EvalTransform
from data.images.inspection import inspect
from data.images.size_limit import SizeLimit
from launcher.runs.thumbnail import thumbnail
from recipes.load import load
from tests.data.pictures import encoded

TAG = 0x0112
ALL = range(1, 9)


def oriented(value: int, file_format: str, size: tuple[int, int] = (120, 88), mode: str = "RGB", **options) -> bytes:
    exif = Image.Exif()
    exif[TAG] = value
    return encoded("picture", file_format, size, mode, exif=exif.tobytes(), **options)


def turned(data: bytes) -> bytes:
    """Return the same image without an orientation, turned by Pillow and stored without loss."""
    stored = io.BytesIO()
    ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB").save(stored, "PNG")
    return stored.getvalue()


@pytest.mark.parametrize("file_format", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("value", ALL)
def test_crops_of_every_orientation_are_those_of_the_turned_image(value, file_format):
    data = oriented(value, file_format)
    image, expected = EncodedImage(data, upright=True), EncodedImage(turned(data))
    assert (image.height, image.width) == (expected.height, expected.width)
    for crop in (Crop(0, 0, image.height, image.width), Crop(3, 11, 40, 50)):
        found = image.crop_resized(crop, 32, "bicubic")
        assert torch.equal(found, expected.crop_resized(crop, 32, "bicubic"))
    assert np.array_equal(np.asarray(decode(data, upright=True)), np.asarray(decode(turned(data))))


@pytest.mark.parametrize("value", ALL)
def test_a_jpeg_that_is_decoded_at_a_smaller_scale_is_turned_too(value):
    data = oriented(value, "JPEG", (645, 483), quality=95)
    image = EncodedImage(data, upright=True)
    crop = Crop(20, 37, 300, 330)
    assert image._scale(crop, 64, 64) == 2
    expected = EncodedImage(turned(data)).crop_resized(crop, 64, "bicubic").int()
    # The crop moves to the grid of the scale. Turned in another way, the mean difference is above 20.
    assert (image.crop_resized(crop, 64, "bicubic").int() - expected).abs().float().mean() < 2


@pytest.mark.parametrize("crop", ["random_resized", "pad"])
def test_training_and_evaluation_see_the_turned_image(crop):
    settings = ["input.size=32", f"augment.crop={crop}"]
    upright, plain = (load("convnext_tiny_in1k", [*settings, *more]) for more in (["input.upright=true"], []))
    data = oriented(6, "PNG")
    for sample in range(4):
        assert torch.equal(
            TrainTransform(upright)(data, 0, sample)[0], TrainTransform(plain)(turned(data), 0, sample)[0]
        )
    assert torch.equal(EvalTransform(upright)(data), EvalTransform(plain)(turned(data)))
    assert not torch.equal(EvalTransform(upright)(data), EvalTransform(plain)(data))


def test_the_pictures_of_a_report_are_turned_too():
    pictures = [
        Image.open(io.BytesIO(base64.b64decode(thumbnail(oriented(6, "PNG"), upright)))) for upright in (True, False)
    ]
    assert [picture.size for picture in pictures] == [(88, 120), (120, 88)]


def test_the_default_leaves_the_identity_of_runs_as_it_was():
    assert "upright" not in load("convnext_tiny_in1k").trajectory()["input"]
    assert load("convnext_tiny_in1k", ["input.upright=true"]).trajectory()["input"]["upright"] is True


@pytest.mark.parametrize(
    "data, limit",
    [
        (oriented(6, "JPEG"), SizeLimit(longest_side=60)),
        (oriented(6, "PNG"), SizeLimit(longest_side=60)),
        (oriented(6, "PNG", mode="I;16"), SizeLimit()),
    ],
    ids=["JPEG", "PNG", "16 bits"],
)
def test_an_image_that_is_encoded_again_keeps_its_orientation(data, limit):
    """Shards that were made smaller can still be read upright."""
    stored = inspect(data, limit).data
    assert stored != data and Image.open(io.BytesIO(stored)).getexif()[TAG] == 6
    assert Image.open(io.BytesIO(inspect(data, limit, upright=True).data)).getexif().get(TAG) is None
