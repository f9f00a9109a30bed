"""From the bytes of a photograph to the pixels of one crop, decoding no more than that crop needs.

The size stands in a JPEG's header, so a random crop can be drawn before anything is decoded. libjpeg-turbo then decodes the
crop alone at full scale, or all at a half, quarter or eighth where the crop keeps at least twice the pixels of the result; a
crop is moved to the grid of that scale, by less than half a pixel of the result. At full scale the pixels are those of Pillow,
bit for bit. The rest of the way is torch's antialiased resize, which rounds to within 2 of 255 of Pillow's at a sixth of the time
and gives the same bits with and without vector instructions.

What is no JPEG, or is one that libjpeg-turbo does not turn into RGB (CMYK, cut off, unusual sampling), is decoded by Pillow; so
is, on the way over the whole image, what it complains of. Which way an image goes follows from its bytes and the crop alone.
"""

import io
from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data.images.inspection import FORMATS
from data.images.partial_decode import decode_rectangle

_SCALES = (8, 4, 2)  # libjpeg-turbo has fast inverse transforms for these alone
_SPARE = 2  # how many times the result's side a scaled crop's side must still be
_JPEG = b"\xff\xd8\xff"
_COLOURS = ("YCbCr", "Gray", "RGB")


@dataclass(frozen=True)
class Crop:
    """A part of an image, in pixels of the whole image."""

    top: int
    left: int
    height: int
    width: int

    def on_grid(self, scale: int, height: int, width: int) -> "Crop":
        """The nearest crop of the image scaled down by `scale`, which has that height and width, in its pixels."""
        top, left = round(self.top / scale), round(self.left / scale)
        bottom, right = round((self.top + self.height) / scale), round((self.left + self.width) / scale)
        return Crop(top, left, min(bottom, height) - top, min(right, width) - left)


class EncodedImage:
    """The bytes of an image of which only the size is read: `height` and `width` in pixels.

    Raises:
        Exception: whatever Pillow raises on an image that it cannot read.
    """

    def __init__(self, data: bytes):
        self.data = data
        self.for_turbo = False
        if data.startswith(_JPEG):
            try:
                self.height, self.width, colours, _ = simplejpeg.decode_jpeg_header(data)
                # Pillow turns CMYK into RGB in its own way, and refuses what is a decompression bomb.
                self.for_turbo = colours in _COLOURS and self.height * self.width <= Image.MAX_IMAGE_PIXELS
            except ValueError:
                pass
        if not self.for_turbo:
            self.width, self.height = Image.open(io.BytesIO(data), formats=FORMATS).size

    def crop_resized(self, crop: Crop, size: int, interpolation: str) -> Tensor:
        """Return a crop as RGB uint8 ``[3, size, size]``, channels last in memory.

        Args:
            interpolation: "bicubic" or "bilinear", antialiased.
        """
        part = torch.from_numpy(self._decoded(crop, self._scale(crop, size)))[None].permute(0, 3, 1, 2)
        if part.shape[2:] == (size, size):
            return part[0]
        return F.interpolate(part, (size, size), mode=interpolation, antialias=True)[0]

    def _decoded(self, crop: Crop, scale: int) -> np.ndarray:
        """A crop scaled down by `scale`, or by less where that cannot be: uint8 ``[height, width, 3]``."""
        if self.for_turbo and scale == 1:
            part = decode_rectangle(self.data, crop.top, crop.left, crop.height, crop.width)
            if part is not None:
                return part
        pixels = self._turbo(scale) if self.for_turbo else None
        if pixels is None:
            scale, pixels = 1, np.array(decode(self.data))
        if scale > 1:
            crop = crop.on_grid(scale, *pixels.shape[:2])
        return np.ascontiguousarray(pixels[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width])

    def _scale(self, crop: Crop, size: int) -> int:
        enough = _SPARE * size
        return next((scale for scale in _SCALES if min(crop.height, crop.width) >= scale * enough), 1)

    def _turbo(self, scale: int) -> np.ndarray | None:
        """The whole image scaled down, uint8 ``[height, width, 3]``; None where Pillow has to decode it."""
        height, width = -(-self.height // scale), -(-self.width // scale)
        try:
            pixels = simplejpeg.decode_jpeg(self.data, min_height=height, min_width=width, min_factor=scale)
        except ValueError:
            return None
        return pixels if pixels.shape == (height, width, 3) else None


def decode(image: bytes) -> Image.Image:
    """Return the RGB image in those bytes, fully decoded by Pillow."""
    return Image.open(io.BytesIO(image), formats=FORMATS).convert("RGB")
