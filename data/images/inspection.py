"""Checks that training can read an image, and recognises what is unusual about it.

Every kind of unusual image has a name, under which it is counted, and one treatment:

- cmyk, grayscale, palette: stored unchanged; readers convert to RGB.
- exif-rotated: stored unchanged and read without rotation, as torchvision and timm do; or turned upright, if asked for.
  An image that is encoded again for another reason keeps its orientation for readers that turn it.
- animated: stored unchanged; readers see the first frame.
- 16-bit: one channel is stored as 8-bit PNG, because converting 16 bits to RGB clips to white; RGB is stored unchanged.
- truncated, decompression-bomb (over 178 million pixels), and anything else that cannot be decoded: left out. A JPEG
  of any size can be made smaller under a size limit, since it decodes at an eighth of its size.
"""

import io
import warnings
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageFile, UnidentifiedImageError

from data.image_formats import FORMATS, STORED_EXTENSIONS
from data.images.orientation import UPRIGHT, orientation
from data.images.size_limit import SizeLimit, shrunk
from data.printable_text import one_line

_NO_LIMIT = SizeLimit()


class Unreadable(Exception):
    """The image cannot be decoded.

    Attributes:
        reason: why; equal for equal bytes, because the reports of several runs are compared.
        odd: names of what is unusual about the image, as far as it was recognised before the error.
    """

    def __init__(self, reason: str, odd: tuple[str, ...] = ()):
        super().__init__(reason)
        self.reason, self.odd = reason, odd


@dataclass(frozen=True)
class CheckedImage:
    """An image that can be decoded, in the form in which it is stored.

    Attributes:
        data: the encoded image.
        extension: file extension of its true format, whatever the file was called.
        odd: names of what is unusual about it.
        shrunk: whether it was above the size limit.
    """

    data: bytes
    extension: str
    odd: tuple[str, ...]
    shrunk: bool = False


def inspect(data: bytes, limit: SizeLimit = _NO_LIMIT, upright: bool = False) -> CheckedImage:
    """Decode an image completely, once, and return the form to store: unchanged if it is within the limit.

    Args:
        data: the encoded image.
        limit: size above which it is made smaller.
        upright: turn it as its EXIF orientation says, and encode it again, if that is not upright already.

    Raises:
        Unreadable: it cannot be decoded.
    """
    try:
        return _inspect(data, limit, upright)
    except UnidentifiedImageError:
        raise Unreadable("not an image of a known format" if data else "empty file") from None
    except Image.DecompressionBombError:
        raise Unreadable("more than 178 million pixels", ("decompression-bomb",)) from None
    except Unreadable:
        raise
    except Exception as error:  # Pillow's readers raise almost any exception on damaged bytes
        odd = ("truncated",) if "truncated" in str(error).lower() else ()
        raise Unreadable(one_line(f"{type(error).__name__}: {error}"), odd) from None


def format_and_colour(data: bytes) -> tuple[str, bool]:
    """Return the format of an image, and whether its pixels are colours and no grey values or numbers of a palette.

    Only the header is read.

    Raises:
        Unreadable: it is no image.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # those are said when the image is decoded
        try:
            image = Image.open(io.BytesIO(data), formats=FORMATS)
        except Exception as error:
            raise Unreadable(one_line(f"{type(error).__name__}: {error}")) from None
    file_format = "JPEG" if image.format == "MPO" else str(image.format)
    # Every GIF has a palette, of a photograph too.
    plain = image.mode.partition(";")[0] in ("1", "L", "LA", "P", "PA", "I", "F") and file_format != "GIF"
    return file_format, not plain


def _inspect(data: bytes, limit: SizeLimit, upright: bool) -> CheckedImage:
    image = _open(data, limit)
    odd = _oddities(image)
    if image.mode == "F" or (image.mode == "I" and image.format == "TIFF"):
        raise Unreadable("32-bit pixels, whose range is not known")
    if image.format != "JPEG":
        image.load()
    turn = orientation(image)
    if turn != UPRIGHT:
        odd.append("exif-rotated")
    pixels: Image.Image = eight_bit(image) if image.mode.startswith("I") else image
    size = limit.allowed(*image.size)
    extension = "jpg" if size else "png" if pixels is not image else STORED_EXTENSIONS[str(image.format)]
    if size is not None:
        pixels = shrunk(pixels, size)
    if upright:
        pixels, turn = turn.upright_image(pixels), UPRIGHT
    if pixels is not image:
        data, extension = _encoded(pixels, extension, limit.quality, turn.exif())
    elif image.format == "JPEG":
        # A draft decode reads every coded bit too: it finds the same damage as a full decode in about half the time.
        image.draft(None, (1, 1))
        image.load()
    return CheckedImage(data, extension, tuple(odd), shrunk=size is not None)


def _open(data: bytes, limit: SizeLimit) -> ImageFile.ImageFile:
    """Open an image. Under a size limit, a JPEG may have more pixels than Pillow's limit for decompression bombs."""
    try:
        return Image.open(io.BytesIO(data), formats=FORMATS)
    except Image.DecompressionBombError:
        if not (limit.shortest_side or limit.longest_side):
            raise
    bomb_limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = None
    try:
        image = Image.open(io.BytesIO(data), formats=FORMATS)
    finally:
        Image.MAX_IMAGE_PIXELS = bomb_limit
    width, height = image.size
    target = limit.allowed(width, height)
    # Only a JPEG decodes at a fraction of its size, at best an eighth of each side.
    scale = min(8, width // (2 * target[0]), height // (2 * target[1])) if target and image.format == "JPEG" else 1
    if bomb_limit is not None and width * height > 2 * bomb_limit * max(scale, 1) ** 2:
        raise Image.DecompressionBombError
    return image


def _encoded(pixels: Image.Image, extension: str, quality: int, exif: bytes) -> tuple[bytes, str]:
    """Return pixels that were changed, encoded as JPEG if `extension` is "jpg" or else as PNG, and the extension.

    Args:
        pixels: of the changed image.
        extension: of the image as it was found.
        quality: of a JPEG, from 1 to 100.
        exif: the EXIF data to store; empty: none.
    """
    stored = io.BytesIO()
    if extension == "jpg":
        pixels.save(stored, "JPEG", quality=quality, exif=exif)
        return stored.getvalue(), "jpg"
    pixels.save(stored, "PNG", exif=exif)
    return stored.getvalue(), "png"


def _oddities(image: ImageFile.ImageFile) -> list[str]:
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


def _raw_modes(image: ImageFile.ImageFile) -> str:
    """Return how a PNG or TIFF file stores its pixels, e.g. "RGB;16B" when Pillow's mode says only RGB."""
    return " ".join(str(tile[3]) for tile in image.tile) if image.format in ("PNG", "TIFF") else ""


def eight_bit(image: Image.Image) -> Image.Image:
    """Return a 16-bit grey image with 8 bits."""
    pixels = np.asarray(image).astype(np.int64).clip(0, 65535) >> 8
    return Image.fromarray(pixels.astype(np.uint8))
