"""Decodes one crop of an encoded image, and no more of the image than the crop needs.

The size of a JPEG is in its header, so a random crop can be drawn before anything is decoded. There are two ways:

- At full scale libjpeg-turbo decodes the crop alone. Its pixels are those of Pillow, bit for bit.
- If the crop has at least twice the pixels of the result on each side, libjpeg-turbo decodes the whole image at a
  half, a quarter or an eighth of its size. The crop is moved to the grid of that scale, by less than half a pixel of
  the result.

torch's antialiased resize does the rest. It differs from Pillow's by at most 2 of 255, takes a sixth of the time, and
gives the same bits with and without vector instructions.

Pillow decodes everything else: other formats, and JPEGs that libjpeg-turbo does not turn into RGB (CMYK, truncated,
unusual sampling). It is also the fallback if libjpeg-turbo reports damage while it decodes a whole image. The choice
depends on the bytes and the crop alone, so it is the same on every machine.
"""

import io
from dataclasses import dataclass

import numpy as np
import simplejpeg
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from data.image_formats import FORMATS
from data.images.inspection import eight_bit
from data.images.orientation import UPRIGHT, Orientation, orientation
from data.images.partial_decode import decode_rectangle

_SCALES = (8, 4, 2)  # libjpeg-turbo has vectorised inverse transforms for these scales only
_MIN_OVERSAMPLING = 2  # a scaled crop keeps at least this many pixels per pixel of the result, on each side
_JPEG_START = b"\xff\xd8\xff"
_COLOUR_SPACES = ("YCbCr", "Gray", "RGB")
_LONGEST = 100  # times its shorter side; of a longer image, what is resized as a whole is the middle


@dataclass(frozen=True)
class Crop:
    """A rectangle of an image, in pixels of the whole image."""

    top: int
    left: int
    height: int
    width: int

    def stored(self, turn: Orientation, height: int, width: int) -> "Crop":
        """Return the same crop of an upright image in the pixels of the image as it is stored.

        Args:
            turn: how the stored image is turned to be upright.
            height: of the upright image.
            width: of the upright image.
        """
        top = height - self.top - self.height if turn.rows_reversed else self.top
        left = width - self.left - self.width if turn.columns_reversed else self.left
        return Crop(left, top, self.width, self.height) if turn.swapped else Crop(top, left, self.height, self.width)

    def on_grid(self, scale: int, height: int, width: int) -> "Crop":
        """Return the nearest crop of the image scaled down by `scale`, in pixels of the scaled image.

        Args:
            height: of the scaled image.
            width: of the scaled image.
        """
        top, left = round(self.top / scale), round(self.left / scale)
        bottom, right = round((self.top + self.height) / scale), round((self.left + self.width) / scale)
        return Crop(top, left, min(bottom, height) - top, min(right, width) - left)


def middle_of_strip(height: int, width: int) -> Crop:
    """Return the middle of an image that is more than `_LONGEST` times longer than wide, and all of any other image.

    A resize of the shorter side to 256 pixels would make an image of 256 x 1,536,000 from a strip of 1 x 6000 pixels,
    which takes gigabytes.
    """
    top, left = max(0, height - _LONGEST * width) // 2, max(0, width - _LONGEST * height) // 2
    return Crop(top, left, height - 2 * top, width - 2 * left)


class EncodedImage:
    """An image that is still encoded: its bytes, and `height` and `width` in pixels from its header.

    Args:
        data: its bytes.
        upright: turn it as its EXIF orientation says. Height, width and crops are those of the upright image.

    Raises:
        Exception: whatever Pillow raises on an image that it cannot read.
    """

    def __init__(self, data: bytes, upright: bool = False):
        self.data = data
        self.turbo_decodes = False
        self.turn = UPRIGHT
        if data.startswith(_JPEG_START):
            try:
                self.height, self.width, colour_space, _ = simplejpeg.decode_jpeg_header(data)
                # CMYK is left to Pillow, whose conversion to RGB differs, and so are images too large for Pillow.
                self.turbo_decodes = (
                    colour_space in _COLOUR_SPACES and self.height * self.width <= Image.MAX_IMAGE_PIXELS
                )
            except ValueError:
                pass
        if upright or not self.turbo_decodes:
            opened = Image.open(io.BytesIO(data), formats=FORMATS)
            self.width, self.height = opened.size
            if upright:
                self.turn = orientation(opened)
                if self.turn.swapped:
                    self.width, self.height = self.height, self.width

    def crop_resized(self, crop: Crop, size: int, interpolation: str) -> Tensor:
        """Return a crop as RGB, uint8 ``[3, size, size]``, channels last in memory.

        Args:
            interpolation: "bicubic" or "bilinear", antialiased.
        """
        return self._resized(crop, size, size, interpolation)

    def resized(self, shorter_side: int, interpolation: str) -> Tensor:
        """Return the whole image in its own aspect ratio as RGB, uint8 ``[3, height, width]``, channels last in memory.

        Of a strip it is the part that `middle_of_strip` returns.

        Args:
            shorter_side: of the result, in pixels; the longer side is rounded down, as in torchvision's `Resize`.
            interpolation: "bicubic" or "bilinear", antialiased.
        """
        whole = middle_of_strip(self.height, self.width)
        shorter = min(whole.height, whole.width)
        height, width = (side * shorter_side // shorter for side in (whole.height, whole.width))
        return self._resized(whole, height, width, interpolation)

    def _resized(self, crop: Crop, height: int, width: int, interpolation: str) -> Tensor:
        scale = self._scale(crop, height, width)
        part = torch.from_numpy(self._decoded(crop, scale))[None].permute(0, 3, 1, 2)
        if part.shape[2:] == (height, width):
            return part[0]
        return F.interpolate(part, (height, width), mode=interpolation, antialias=True)[0]

    def _decoded(self, crop: Crop, scale: int) -> np.ndarray:
        """Return a crop at `scale`, or at full scale if Pillow has to decode it: uint8 ``[height, width, 3]``."""
        stored = self._decoded_as_stored(crop.stored(self.turn, self.height, self.width), scale)
        return np.ascontiguousarray(self.turn.upright(stored))

    def _decoded_as_stored(self, crop: Crop, scale: int) -> np.ndarray:
        if self.turbo_decodes and scale == 1:
            part = decode_rectangle(self.data, crop.top, crop.left, crop.height, crop.width)
            if part is not None:
                return part
        pixels = self._scaled_down(scale) if self.turbo_decodes else None
        if pixels is None:
            scale, pixels = 1, np.array(decode(self.data))
        if scale > 1:
            crop = crop.on_grid(scale, *pixels.shape[:2])
        return pixels[crop.top : crop.top + crop.height, crop.left : crop.left + crop.width]

    def _scale(self, crop: Crop, height: int, width: int) -> int:
        """Return the largest scale at which the crop still has enough pixels for a result of `height` and `width`."""
        oversampling = min(crop.height / height, crop.width / width)
        return next((scale for scale in _SCALES if oversampling >= scale * _MIN_OVERSAMPLING), 1)

    def _scaled_down(self, scale: int) -> np.ndarray | None:
        """Return the whole stored image scaled down, uint8 ``[height, width, 3]``; None if Pillow has to decode it."""
        height, width = -(-self.height // scale), -(-self.width // scale)
        if self.turn.swapped:
            height, width = width, height
        try:
            pixels: np.ndarray = simplejpeg.decode_jpeg(self.data, min_height=height, min_width=width, min_factor=scale)
        except ValueError:
            return None
        return pixels if pixels.shape == (height, width, 3) else None


def decode(image: bytes, upright: bool = False) -> Image.Image:
    """Return the image as RGB, fully decoded by Pillow, and turned as its EXIF orientation says if `upright`."""
    opened: Image.Image = Image.open(io.BytesIO(image), formats=FORMATS)
    # Shards that other tools wrote may hold 16-bit images, which Pillow's conversion to RGB would clip to white.
    pixels = (eight_bit(opened) if opened.mode.startswith("I") else opened).convert("RGB")
    return orientation(opened).upright_image(pixels) if upright else pixels
