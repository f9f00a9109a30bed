"""The orientation that EXIF gives an image: how its stored pixels have to be turned to be upright."""

from dataclasses import dataclass

import numpy as np
from PIL import Image

_TAG = 0x0112  # "Orientation" in the EXIF standard, with values from 1 to 8


@dataclass(frozen=True)
class Orientation:
    """A way to turn stored pixels: swap rows and columns, then reverse rows or columns or both.

    Attributes:
        value: of the EXIF tag; 1: upright already.
        swapped: whether rows and columns are swapped.
        rows_reversed, columns_reversed: whether they are reversed after that.
        transpose: the same as one of Pillow's methods; None if nothing is to do.
    """

    value: int
    swapped: bool
    rows_reversed: bool
    columns_reversed: bool
    transpose: Image.Transpose | None

    def upright(self, pixels: np.ndarray) -> np.ndarray:
        """Return a view of stored pixels ``[height, width, channels]`` that is upright."""
        turned = pixels.swapaxes(0, 1) if self.swapped else pixels
        return turned[:: -1 if self.rows_reversed else 1, :: -1 if self.columns_reversed else 1]

    def upright_image(self, image: Image.Image) -> Image.Image:
        """Return an image upright."""
        return image if self.transpose is None else image.transpose(self.transpose)

    def exif(self) -> bytes:
        """Return EXIF data that hold this orientation and nothing else; empty if the image is upright."""
        if self == UPRIGHT:
            return b""
        found = Image.Exif()
        found[_TAG] = self.value
        return found.tobytes()


UPRIGHT = Orientation(1, False, False, False, None)
_TURNED = (
    Orientation(2, False, False, True, Image.Transpose.FLIP_LEFT_RIGHT),
    Orientation(3, False, True, True, Image.Transpose.ROTATE_180),
    Orientation(4, False, True, False, Image.Transpose.FLIP_TOP_BOTTOM),
    Orientation(5, True, False, False, Image.Transpose.TRANSPOSE),
    Orientation(6, True, False, True, Image.Transpose.ROTATE_270),
    Orientation(7, True, True, True, Image.Transpose.TRANSVERSE),
    Orientation(8, True, True, False, Image.Transpose.ROTATE_90),
)
_BY_VALUE = {orientation.value: orientation for orientation in _TURNED}


def orientation(image: Image.Image) -> Orientation:
    """Return the orientation in the EXIF data of an open image; `UPRIGHT` if it has none or they are damaged.

    Load the pixels of formats other than JPEG before: Pillow reads a PNG to its end here and hides damage on the way.
    """
    if image.format == "TIFF":  # Pillow turns its pixels when it loads them, and its size is that of the upright image
        return UPRIGHT
    try:
        return _BY_VALUE.get(image.getexif().get(_TAG, 1), UPRIGHT)
    except Exception:  # the metadata are damaged, not the image
        return UPRIGHT
