"""RandAugment's shears and translations on arrays, several times as fast as Pillow's affine transform that timm calls.

They shift every row, or every column, along itself by its own offset. Bicubic interpolation then needs four pixels of
that row, with the same weights for the whole row. Pillow computes sixteen weights for each pixel.

Kernel, edges, fill and truncation are Pillow's. Values differ from Pillow's by at most 1 of 255, because weights are
rounded to multiples of 2**-14. That makes the sums exact in single precision, and so the same on every processor.

An image is uint8 ``[height, width, 3]``.
"""

import math
from collections.abc import Callable
from functools import wraps

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from timm.data import auto_augment

from data.images.randaugment_pillow import PillowOperation

Fill = tuple[int, int, int]

_CHANNELS = 3
_PIXEL = np.dtype(f"V{_CHANNELS}")  # copying pixels as items of three bytes is several times as fast as copying values
_WEIGHT_STEP = 2**-14


def _bicubic_only(
    timm_operation: Callable[..., Image.Image],
) -> Callable[[Callable[[np.ndarray, float, Fill], np.ndarray]], Callable[..., np.ndarray]]:
    """Decorate a bicubic operation so that it falls back on timm's for any other interpolation."""
    fallback = PillowOperation(timm_operation)

    def decorate(bicubic: Callable[[np.ndarray, float, Fill], np.ndarray]) -> Callable[..., np.ndarray]:
        @wraps(bicubic)
        def operation(image: np.ndarray, amount: float, fillcolor: Fill, resample: int) -> np.ndarray:
            if resample != Image.Resampling.BICUBIC:
                return fallback(image, amount, fillcolor=fillcolor, resample=resample)
            return bicubic(image, amount, fillcolor)

        return operation

    return decorate


@_bicubic_only(auto_augment.shear_x)
def shear_x(image: np.ndarray, factor: float, fill: Fill) -> np.ndarray:
    """Return an image of the same size whose row y is shifted left by ``factor * (y + 0.5)`` pixels."""
    return _shift_rows(image, factor * (np.arange(len(image)) + 0.5), fill)


@_bicubic_only(auto_augment.shear_y)
def shear_y(image: np.ndarray, factor: float, fill: Fill) -> np.ndarray:
    """Return an image of the same size whose column x is shifted up by ``factor * (x + 0.5)`` pixels."""
    return _transpose(_shift_rows(_transpose(image), factor * (np.arange(image.shape[1]) + 0.5), fill))


@_bicubic_only(auto_augment.translate_x_rel)
def translate_x(image: np.ndarray, share: float, fill: Fill) -> np.ndarray:
    """Return an image of the same size, shifted left by `share` of its width."""
    height, width, _ = image.shape
    return _shift_rows(image, np.full(height, share * width), fill)


@_bicubic_only(auto_augment.translate_y_rel)
def translate_y(image: np.ndarray, share: float, fill: Fill) -> np.ndarray:
    """Return an image of the same size, shifted up by `share` of its height."""
    # Whole rows with one offset: no transposition is needed, unlike in a vertical shear.
    height, offset = len(image), share * len(image)
    whole = math.floor(offset)
    needed = (
        image[np.clip(np.arange(whole - 1, whole + height + 2), 0, height - 1)]
        .reshape(height + 3, -1)
        .astype(np.float32)
    )
    taps = sliding_window_view(needed, height, axis=0).transpose(2, 0, 1)
    sums = np.einsum("t,ytx->yx", _weights(np.array([offset - whole]))[0], taps)
    nearest = np.arange(height) + math.floor(offset + 0.5)
    return _image_from_sums(sums, (nearest < 0) | (nearest >= height), fill)


def _transpose(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(_pixels(image).T).view(np.uint8).reshape(image.shape[1], image.shape[0], _CHANNELS)


def _pixels(image: np.ndarray) -> np.ndarray:
    """Return a view of the image with one item per pixel, ``[height, width]``."""
    pixels: np.ndarray = image.view(_PIXEL)[..., 0]
    return pixels


def _shift_rows(image: np.ndarray, offsets: np.ndarray, fill: Fill) -> np.ndarray:
    """Return the image with row y shifted left by ``offsets[y]`` pixels, float64 ``[height]``."""
    height, width, _ = image.shape
    whole = np.floor(offsets).astype(np.int32)
    reach = int(abs(whole).max()) + 2
    wide = np.empty((height, reach + width + reach, _CHANNELS), np.uint8)
    wide[:, reach:-reach] = image
    for channel in range(_CHANNELS):
        wide[:, :reach, channel], wide[:, -reach:, channel] = image[:, :1, channel], image[:, -1:, channel]
    starts = np.arange(height) * wide.shape[1] + reach + whole - 1
    # Pixel x of the result is made of the pixels x to x + 3 of its row here.
    needed = sliding_window_view(wide.reshape(-1), (width + 3) * _CHANNELS)[starts * _CHANNELS]
    taps = sliding_window_view(needed.astype(np.float32), width * _CHANNELS, axis=1)[:, ::_CHANNELS]
    sums = np.einsum("yt,ytx->yx", _weights(offsets - whole), taps)
    nearest = np.arange(width, dtype=np.int32) + np.floor(offsets + 0.5).astype(np.int32)[:, None]
    # Seen as unsigned, a negative number is large: one comparison finds both sides.
    return _image_from_sums(sums, nearest.view(np.uint32) >= width, fill)


def _image_from_sums(sums: np.ndarray, outside: np.ndarray, fill: Fill) -> np.ndarray:
    """Return the image for float32 sums ``[height, 3 * width]``: clipped to 0..255, truncated, `outside` filled.

    Args:
        sums: overwritten.
        outside: bool ``[height]`` or ``[height, width]``, the rows or pixels that lie outside of the original image.
    """
    image: np.ndarray = np.clip(sums, 0, 255, out=sums).astype(np.uint8).reshape(len(sums), -1, _CHANNELS)
    _pixels(image)[outside] = np.array(fill, np.uint8).view(_PIXEL)
    return image


def _weights(d: np.ndarray) -> np.ndarray:
    """Return the weights of the pixels at -1, 0, 1 and 2 for positions ``d[n]`` in [0, 1], float32 ``[n, 4]``.

    The kernel is cubic convolution (Keys, 1981) with a = -1, as in Pillow's transform.
    """
    e = 1 - d
    weights = np.stack([-d * e * e, e * (1 + d * e), d * (1 + d * e), -d * d * e], axis=1)
    weights = np.rint(weights / _WEIGHT_STEP) * _WEIGHT_STEP
    weights[:, 1] += 1 - weights.sum(axis=1)  # rounding must not change the brightness
    return weights.astype(np.float32)
