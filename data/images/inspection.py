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

import numpy as np
from PIL import Image, UnidentifiedImageError

from data.images.size_limit import SizeLimit, shrink

# Pillow knows formats whose reader starts another program (EPS runs Ghostscript); a data set must not choose one.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
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
_NO_LIMIT = SizeLimit()


class Unreadable(Exception):
    """The image cannot be decoded; the message says why, and is the same at every try."""

    def __init__(self, reason: str, odd: tuple[str, ...] = ()):
        super().__init__(reason)
        self.reason, self.odd = reason, odd


@dataclass(frozen=True)
class Photograph:
    """An image that decodes, as it is to be stored: bytes, the file extension of its true format, what is odd about it.

    `shrunk`: it was above the size limit.
    """

    data: bytes
    extension: str
    odd: tuple[str, ...]
    shrunk: bool = False


def inspect(data: bytes, limit: SizeLimit = _NO_LIMIT) -> Photograph:
    """Decode an image once, completely, and return it as it is to be stored: unchanged, if it is within the limit.

    Raises:
        Unreadable: it cannot be decoded.
    """
    try:
        # Truncated metadata and 89 to 178 million pixels only warn, and neither hurts training.
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return _inspect(data, limit)
    except UnidentifiedImageError:
        raise Unreadable("not an image of a known format" if data else "empty file") from None
    except Image.DecompressionBombError:
        raise Unreadable("more than 178 million pixels", ("decompression-bomb",)) from None
    except Unreadable:
        raise
    except Exception as error:  # Pillow's readers raise nearly anything on damaged bytes
        odd = ("truncated",) if "truncated" in str(error).lower() else ()
        raise Unreadable(f"{type(error).__name__}: {error}", odd) from None


def _inspect(data: bytes, limit: SizeLimit) -> Photograph:
    image = Image.open(io.BytesIO(data), formats=FORMATS)
    odd = _oddities(image)
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise Unreadable("32-bit pixels, whose range is not known")
    size = limit.allowed(*image.size)
    stored = image
    if image.mode.startswith("I"):
        stored, data, extension = _eight_bit(image)
    else:
        extension = _EXTENSIONS[image.format]
    if size is not None:
        data, extension = shrink(stored, size, limit.quality), "jpg"
    elif image.format == "JPEG":
        # Reads every coded bit, so finds the same damage as a full decode in little more than half the time.
        image.draft(None, (1, 1))
    image.load()
    if _rotated(image):
        odd.append("exif-rotated")
    return Photograph(data, extension, tuple(odd), shrunk=size is not None)


def _oddities(image: Image.Image) -> list[str]:
    found = []
    if image.mode.startswith("I") or "16" in _raw_modes(image):
        found.append("16-bit")
    elif image.mode == "CMYK":
        found.append("cmyk")
    elif image.mode in ("L", "LA", "1"):
        found.append("grayscale")
    elif image.mode in ("P", "PA"):
        found.append("palette")
    if image.format != "MPO" and getattr(image, "is_animated", False):
        found.append("animated")
    return found


def _raw_modes(image: Image.Image) -> str:
    """How the file stores pixels, e.g. "RGB;16B", where Pillow's mode says RGB."""
    return " ".join(str(tile[3]) for tile in image.tile) if image.format in ("PNG", "TIFF") else ""


def _rotated(image: Image.Image) -> bool:
    try:  # only once the pixels are read: Pillow looks behind them, and hides damage that it meets on the way
        return image.getexif().get(_ORIENTATION, 1) in range(2, 9)
    except Exception:  # damaged metadata of a good image
        return False


def _eight_bit(image: Image.Image) -> tuple[Image.Image, bytes, str]:
    pixels = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
    image = Image.fromarray(pixels.astype(np.uint8))
    stored = io.BytesIO()
    image.save(stored, "PNG")
    return image, stored.getvalue(), "png"
