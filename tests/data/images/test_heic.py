"""HEIC images, as phones write them, become shards and training inputs when pillow-heif is installed."""

import io

import numpy as np
import pytest
from PIL import Image

from data.image_formats import FORMATS
from data.images.decode import Crop, EncodedImage
from data.images.inspection import Unreadable, inspect
from data.writing.sharding import shard
from tests.data.pictures import encoded, write_tree

pytestmark = pytest.mark.skipif("HEIF" not in FORMATS, reason="needs pillow-heif: pip install 'bigbatch[formats]'")


def test_heic_images_become_shards_unchanged(tmp_path):
    write_tree(tmp_path / "tree", each=2)
    phone = encoded("phone", "HEIF", size=(64, 48))
    (tmp_path / "tree/ant/IMG_0001.HEIC").write_bytes(phone)
    found = shard(str(tmp_path / "tree"), tmp_path / "shards", val_fraction=0, progress=False).split("train")
    assert len(found) == 7 and phone in [found.read(i) for i in range(7)]


def test_a_crop_of_a_heic_image_is_the_one_that_pillow_decodes():
    phone = encoded("phone", "HEIF", size=(64, 48))
    pixels = np.asarray(Image.open(io.BytesIO(phone)).convert("RGB"))
    crop = EncodedImage(phone).crop_resized(Crop(8, 16, 32, 32), 32, "bicubic")
    np.testing.assert_array_equal(crop.permute(1, 2, 0).numpy(), pixels[8:40, 16:48])


def test_a_damaged_heic_image_is_unreadable():
    phone = encoded("phone", "HEIF", size=(64, 48))
    for damaged in (phone[: len(phone) // 2], phone[:40], phone[:12]):
        with pytest.raises(Unreadable):
            inspect(damaged)


def test_a_heic_image_that_was_turned_is_stored_unchanged_and_read_upright():
    """The format turns its pixels itself, so no rotation is left for `--upright`."""
    exif = Image.Exif()
    exif[0x0112] = 6
    turned = encoded("phone", "HEIF", size=(64, 48), exif=exif.tobytes())
    assert inspect(turned, upright=True).data == inspect(turned).data == turned
    opened = EncodedImage(turned)
    assert (opened.width, opened.height) == (48, 64)
