"""Every unusual image is treated as documented, and only images above the size limit are encoded again."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from data.images.inspection import Unreadable, inspect
from data.images.size_limit import SizeLimit
from recipes.errors import UserError
from tests.data.pictures import encoded


def saved(image: Image.Image, file_format: str, **options) -> bytes:
    stored = io.BytesIO()
    image.save(stored, file_format, **options)
    return stored.getvalue()


def rotated(orientation: int) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded("rotated", exif=exif)


def gigantic() -> bytes:
    """A PNG of a few bytes whose header says 20,000 x 20,000."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


GREY_16 = Image.fromarray((np.arange(1200).reshape(30, 40) * 50).astype(np.uint16))
FRAMES = [Image.new("RGB", (40, 30), color) for color in ("red", "blue")]


@pytest.mark.parametrize(
    ("data", "extension", "odd"),
    [
        (encoded("plain"), "jpg", ()),
        (encoded("cmyk", mode="CMYK"), "jpg", ("cmyk",)),
        (encoded("grey", mode="L"), "jpg", ("grayscale",)),
        (encoded("grey", "PNG", mode="LA"), "png", ("grayscale",)),
        (encoded("palette", "PNG", mode="P"), "png", ("palette",)),
        (encoded("webp", "WEBP"), "webp", ()),
        (encoded("bmp", "BMP"), "bmp", ()),
        (encoded("tiff", "TIFF"), "tiff", ()),
        (rotated(6), "jpg", ("exif-rotated",)),
        (rotated(1), "jpg", ()),
        (encoded("progressive", progressive=True), "jpg", ()),
        (saved(FRAMES[0], "GIF", save_all=True, append_images=FRAMES[1:]), "gif", ("palette", "animated")),
        (saved(FRAMES[0], "WEBP", save_all=True, append_images=FRAMES[1:]), "webp", ("animated",)),
    ],
    ids=lambda value: "" if isinstance(value, bytes) else None,
)
def test_kept_byte_for_byte_under_its_true_extension_and_counted(data, extension, odd):
    found = inspect(data)
    assert (found.data, found.extension, found.odd, found.shrunk) == (data, extension, odd, False)


@pytest.mark.parametrize("file_format", ["PNG", "TIFF"])
def test_one_channel_of_16_bits_is_stored_as_8_bits_since_readers_clip_it_to_white(file_format):
    found = inspect(saved(GREY_16, file_format))
    assert found.odd == ("16-bit",) and found.extension == "png"
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found.data))), np.asarray(GREY_16) >> 8)


def test_rgb_of_16_bits_is_kept():
    raw = np.arange(4 * 3 * 3, dtype=">u2").reshape(3, 4, 3) * 1000

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.tobytes() for row in raw)
    header = struct.pack(">IIBBBBB", 4, 3, 16, 2, 0, 0, 0)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    found = inspect(data)
    assert found.data == data and found.odd == ("16-bit",)


@pytest.mark.parametrize(
    ("data", "odd"),
    [
        (encoded("cut")[:-200], ("truncated",)),
        (encoded("cut", "PNG", size=(200, 200))[:-200], ("truncated",)),
        (gigantic(), ("decompression-bomb",)),
        (b"", ()),
        (b"<html>404</html>", ()),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\nshowpage\n", ()),
        (saved(Image.fromarray(np.ones((4, 4), np.float32)), "TIFF"), ()),
    ],
    ids=["jpeg cut", "png cut", "bomb", "empty", "html", "postscript", "float"],
)
@pytest.mark.parametrize("limit", [SizeLimit(), SizeLimit(shortest_side=4)])
def test_left_out(data, odd, limit):
    with pytest.raises(Unreadable) as damage:
        inspect(data, limit)
    assert damage.value.odd == odd and " at 0x" not in damage.value.reason


def test_damage_is_found_as_by_a_full_decode():
    """The shortened decode of JPEG, on 400 files with random bytes cut off or changed, plain and progressive."""
    draw = np.random.default_rng(0)
    whole = [encoded(str(i), size=(120, 90), progressive=i % 2 == 1, quality=90) for i in range(8)]
    refused = 0
    for attempt in range(400):
        data = bytearray(whole[attempt % len(whole)])
        if attempt % 3 == 0:
            del data[draw.integers(1, len(data)) :]
        else:
            for place in draw.integers(0, len(data), 3):
                data[place] = draw.integers(256)
        try:
            Image.open(io.BytesIO(data), formats=("JPEG",)).load()
            whole_decode = True
        except Exception:
            whole_decode = False
        try:
            inspect(bytes(data))
            ours = True
        except Unreadable:
            ours = False
        assert ours == whole_decode
        refused += not ours
    assert 100 < refused < 400


@pytest.mark.parametrize(
    ("limit", "size", "expected"),
    [
        (SizeLimit(shortest_side=256), (500, 375), (341, 256)),
        (SizeLimit(longest_side=256), (500, 375), (256, 192)),
        (SizeLimit(shortest_side=256, longest_side=300), (500, 375), (300, 225)),
        (SizeLimit(shortest_side=256), (256, 900), None),
        (SizeLimit(longest_side=900), (256, 900), None),
        (SizeLimit(longest_side=2), (1, 1000), (1, 2)),
        (SizeLimit(), (10_000, 10_000), None),
    ],
)
def test_which_size_an_image_shrinks_to(limit, size, expected):
    assert limit.allowed(*size) == expected


def test_an_image_above_the_limit_is_encoded_again_and_looks_the_same():
    data = encoded("large", size=(1600, 1200))
    found = inspect(data, SizeLimit(shortest_side=100))
    small = Image.open(io.BytesIO(found.data))
    assert found.shrunk and small.size == (133, 100) and small.mode == "RGB"
    expected = Image.open(io.BytesIO(data)).resize((133, 100), Image.Resampling.LANCZOS)
    assert np.abs(np.asarray(small, int) - np.asarray(expected, int)).mean() < 2


def test_an_image_within_the_limit_is_never_touched():
    data = encoded("small", size=(100, 80))
    assert inspect(data, SizeLimit(shortest_side=80)).data == data
    assert inspect(data, SizeLimit(longest_side=100, quality=10)).data == data


@pytest.mark.parametrize(("mode", "stored"), [("L", "L"), ("CMYK", "RGB"), ("RGB", "RGB")])
def test_shrunk_images_are_grey_or_rgb(mode, stored):
    found = inspect(encoded("x", mode=mode, size=(100, 80)), SizeLimit(longest_side=50))
    assert Image.open(io.BytesIO(found.data)).mode == stored


@pytest.mark.parametrize("values", [{"shortest_side": 0}, {"longest_side": -1}, {"quality": 0}, {"quality": 101}])
def test_an_impossible_limit_is_one_sentence(values):
    with pytest.raises(UserError, match="not valid"):
        SizeLimit(**values)
