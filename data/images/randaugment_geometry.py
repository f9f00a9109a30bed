"""timm's shears and translations of RandAugment on arrays, several times as fast as Pillow's general transform, which timm calls.

They move every row, or every column, along itself by an offset of its own. So a bicubic interpolation needs four pixels
of that row, with weights that are the same all along it, where Pillow takes sixteen for each pixel anew. Kernel, edges,
fill and truncation are Pillow's, and so are the values, but for 1 of 255 here and there: weights are rounded to multiples
of 2**-14. That makes the sums exact in single precision, thus the same on every processor.

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

_COLOURS = 3
_PIXEL = np.dtype(f"V{_COLOURS}")  # moving pixels whole is several times as fast as their values


def _if_bicubic(theirs: Callable) -> Callable:
    """Of a move of ours, which knows bicubic interpolation only: the same, that with another interpolation is timm's."""
    otherwise = PillowOperation(theirs)

    def completed(ours: Callable) -> Callable:
        @wraps(ours)
        def move(image: np.ndarray, amount: float, fillcolor: tuple[int, int, int], resample: int) -> np.ndarray:
            if resample != Image.Resampling.BICUBIC:
                return otherwise(image, amount, fillcolor=fillcolor, resample=resample)
            return ours(image, amount, fillcolor)

        return move

    return completed


@_if_bicubic(auto_augment.shear_x)
def shear_x(image: np.ndarray, factor: float, fill: tuple[int, int, int]) -> np.ndarray:
    """Return an image of the same size whose row y shows what lay ``factor * y`` to the right."""
    return _rows_moved(image, factor * (np.arange(len(image)) + 0.5), fill)


@_if_bicubic(auto_augment.shear_y)
def shear_y(image: np.ndarray, factor: float, fill: tuple[int, int, int]) -> np.ndarray:
    """As `shear_x`, with columns."""
    return _transposed(_rows_moved(_transposed(image), factor * (np.arange(image.shape[1]) + 0.5), fill))


@_if_bicubic(auto_augment.translate_x_rel)
def translate_x(image: np.ndarray, share: float, fill: tuple[int, int, int]) -> np.ndarray:
    """Return an image of the same size that shows what lay `share` of the width to the right."""
    height, width, _ = image.shape
    return _rows_moved(image, np.full(height, share * width), fill)


@_if_bicubic(auto_augment.translate_y_rel)
def translate_y(image: np.ndarray, share: float, fill: tuple[int, int, int]) -> np.ndarray:
    """As `translate_x`, with the height."""
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
    return _image_of(sums, (nearest < 0) | (nearest >= height), fill)


def _transposed(image: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(_pixels(image).T).view(np.uint8).reshape(image.shape[1], image.shape[0], _COLOURS)


def _pixels(image: np.ndarray) -> np.ndarray:
    """The same memory with one item a pixel, ``[height, width]``."""
    return image.view(_PIXEL)[..., 0]


def _rows_moved(image: np.ndarray, offsets: np.ndarray, fill: tuple[int, int, int]) -> np.ndarray:
    """The image whose row y shows what lay ``offsets[y]`` pixels, float64 ``[height]``, to the right."""
    height, width, _ = image.shape
    whole = np.floor(offsets).astype(np.int32)
    reach = int(abs(whole).max()) + 2
    wide = np.empty((height, reach + width + reach, _COLOURS), np.uint8)
    wide[:, reach:-reach] = image
    for colour in range(_COLOURS):
        wide[:, :reach, colour], wide[:, -reach:, colour] = image[:, :1, colour], image[:, -1:, colour]
    starts = np.arange(height) * wide.shape[1] + reach + whole - 1
    needed = sliding_window_view(wide.reshape(-1), (width + 3) * _COLOURS)[
        starts * _COLOURS
    ]  # of x to x + 3 a pixel is made
    taps = sliding_window_view(needed.astype(np.float32), width * _COLOURS, axis=1)[:, ::_COLOURS]
    sums = np.einsum("yt,ytx->yx", _weights(offsets - whole), taps)
    nearest = np.arange(width, dtype=np.int32) + np.floor(offsets + 0.5).astype(np.int32)[:, None]
    return _image_of(sums, nearest.view(np.uint32) >= width, fill)  # as unsigned, negative is large


def _image_of(sums: np.ndarray, outside: np.ndarray, fill: tuple[int, int, int]) -> np.ndarray:
    """The sums ``[height, values of a row]``, which are spoilt, cut to 0 to 255 and whole numbers; rows or pixels `outside` filled."""
    image = np.clip(sums, 0, 255, out=sums).astype(np.uint8).reshape(len(sums), -1, _COLOURS)
    _pixels(image)[outside] = np.array(fill, np.uint8).view(_PIXEL)
    return image


def _weights(d: np.ndarray) -> np.ndarray:
    """Of the pixels at -1, 0, 1 and 2 for places ``d[n]`` between 0 and 1: cubic convolution (Keys, 1981) with a = -1."""
    e = 1 - d
    weights = np.stack([-d * e * e, e * (1 + d * e), d * (1 + d * e), -d * d * e], axis=1)
    weights = np.rint(weights * 2**14) / 2**14
    weights[:, 1] += 1 - weights.sum(axis=1)
    return weights.astype(np.float32)
