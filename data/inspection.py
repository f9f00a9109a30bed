"""Whether bytes are a photograph that training can read, and what is odd about it.

What is odd and what becomes of it:

- cmyk, grayscale, palette: kept as it is; readers convert to RGB.
- exif-rotated: kept as it is and read unrotated, as torchvision and timm do.
- animated: kept as it is; readers see the first frame.
- 16-bit: one channel is stored as 8-bit PNG, since converting 16 bits to RGB clips to white; RGB is kept as it is.
- truncated, decompression-bomb (over 178 million pixels), and anything else that cannot be decoded: left out.
"""

import io
import warnings
from dataclasses import dataclass

from PIL import Image, UnidentifiedImageError

# Pillow knows formats whose reader starts another program (EPS runs Ghostscript); a data set must not choose one.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
_EXTENSIONS = {
    "JPEG": "jpg",
    "MPO": "jpg",  # a JPEG with further pictures behind it, as some cameras write
    "PNG": "png",
    "WEBP": "webp",
    "GIF": "gif",
    "BMP": "bmp",
    "TIFF": "tiff",
    "PPM": "ppm",
}
_ORIENTATION = 0x0112


class Unreadable(Exception):
    """The image cannot be decoded; the message says why, and is the same at every try."""

    def __init__(self, reason: str, odd: tuple[str, ...] = ()):
        super().__init__(reason)
        self.reason, self.odd = reason, odd


@dataclass(frozen=True)
class Photograph:
    """An image that decodes: its bytes, the file extension of its true format, and what is odd about it."""

    data: bytes
    extension: str
    odd: tuple[str, ...]


def inspect(data: bytes) -> Photograph:
    """Decode an image once, completely, and return it as it is to be stored.

    Raises:
        Unreadable: it cannot be decoded.
    """
    try:
        # Truncated metadata and 89 to 178 million pixels only warn, and neither hurts training.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _inspect(data)
    except UnidentifiedImageError:
        raise Unreadable("not an image of a known format" if data else "empty file") from None
    except Image.DecompressionBombError:
        raise Unreadable("more than 178 million pixels", ("decompression-bomb",)) from None
    except Unreadable:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        odd = ("truncated",) if "truncated" in str(error).lower() else ()
        raise Unreadable(f"{type(error).__name__}: {error}", odd) from None


def _inspect(data: bytes) -> Photograph:
    image = Image.open(io.BytesIO(data), formats=_FORMATS)
    odd = []
    if _sixteen_bit(image):
        odd.append("16-bit")
    elif image.mode == "CMYK":
        odd.append("cmyk")
    elif image.mode in ("L", "LA", "1"):
        odd.append("grayscale")
    elif image.mode in ("P", "PA"):
        odd.append("palette")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        odd.append("animated")
    if image.format == "JPEG":
        # Reads every coded bit, so finds the same damage as a full decode in less than half the time.
        image.draft(None, (1, 1))
    image.load()
    if _rotated(image):
        odd.append("exif-rotated")
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise Unreadable("32-bit pixels, whose range is not known")
    if "16-bit" in odd and image.mode != "RGB":
        return Photograph(_eight_bit(image), "png", tuple(odd))
    return Photograph(data, _EXTENSIONS[image.format], tuple(odd))


def _sixteen_bit(image: Image.Image) -> bool:
    if image.mode.startswith("I"):
        return True
    return any("16" in str(tile.args) for tile in image.tile if image.format in ("PNG", "TIFF", "PPM"))


def _rotated(image: Image.Image) -> bool:
    try:
        return image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:  # damaged metadata of a good image
        return False


def _eight_bit(image: Image.Image) -> bytes:
    import numpy

    pixels = numpy.asarray(image).astype(numpy.int64).clip(0, 65535) >> 8
    stored = io.BytesIO()
    Image.fromarray(pixels.astype(numpy.uint8)).save(stored, "PNG")
    return stored.getvalue()
