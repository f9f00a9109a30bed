"""timm's shears and translations of RandAugment, two to three times as fast as Pillow's general transform, which timm calls.

They move every row, or every column, along itself by an offset of its own. So a bicubic interpolation needs four pixels
of that row, with weights that are the same all along it, where Pillow takes sixteen for each pixel anew. Kernel, edges,
fill and truncation are Pillow's, and so are the values, but for 1 of 255 here and there: weights are rounded to multiples
of 2**-14. That makes the sums exact in single precision, thus the same on every processor.
"""

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from PIL import Image
from timm.data import auto_augment

from data.pillow_memory import image_of, values_of

_TRANSPOSE = Image.Transpose.TRANSPOSE
_BANDS = 4  # bytes that Pillow keeps a pixel in


def shear_x(image: Image.Image, factor: float, fillcolor: tuple[int, int, int], resample: int) -> Image.Image:
    """Return an RGB image of the same size whose row y shows what lay ``factor * y`` to the right."""
    if resample != Image.Resampling.BICUBIC:
        return auto_augment.shear_x(image, factor, fillcolor=fillcolor, resample=resample)
    return _rows_moved(image, factor * (np.arange(image.height) + 0.5), fillcolor)


def shear_y(image: Image.Image, factor: float, **options) -> Image.Image:
    """As `shear_x`, with columns."""
    return shear_x(image.transpose(_TRANSPOSE), factor, **options).transpose(_TRANSPOSE)


def translate_x(image: Image.Image, share: float, fillcolor: tuple[int, int, int], resample: int) -> Image.Image:
    """Return an RGB image of the same size that shows what lay `share` of the width to the right."""
    if resample != Image.Resampling.BICUBIC:
        return auto_augment.translate_x_rel(image, share, fillcolor=fillcolor, resample=resample)
    return _rows_moved(image, np.full(image.height, share * image.width), fillcolor)


def translate_y(image: Image.Image, share: float, **options) -> Image.Image:
    """As `translate_x`, with the height."""
    return translate_x(image.transpose(_TRANSPOSE), share, **options).transpose(_TRANSPOSE)


def _rows_moved(image: Image.Image, offsets: np.ndarray, fill: tuple[int, int, int]) -> Image.Image:
    """The image whose row y shows what lay ``offsets[y]`` pixels, float64 ``[height]``, to the right."""
    width, height = image.size
    pixels = values_of(image).view(np.uint32)
    whole = np.floor(offsets).astype(np.int32)
    reach = int(abs(whole).max()) + 2
    wide = np.empty((height, reach + width + reach), np.uint32)
    wide[:, :reach], wide[:, reach:-reach], wide[:, -reach:] = pixels[:, :1], pixels, pixels[:, -1:]
    starts = np.arange(height) * wide.shape[1] + reach + whole - 1
    needed = sliding_window_view(wide.reshape(-1), width + 3)[starts]  # a pixel of the result is made of x to x + 3
    taps = sliding_window_view(needed.view(np.uint8).astype(np.float32), _BANDS * width, axis=1)[:, ::_BANDS]
    result = np.einsum("yt,ytx->yx", _weights(offsets - whole), taps)
    result = np.clip(result, 0, 255, out=result).astype(np.uint8).view(np.uint32)
    nearest = np.arange(width, dtype=np.int32) + np.floor(offsets + 0.5).astype(np.int32)[:, None]
    result[nearest.view(np.uint32) >= width] = np.array((*fill, 255), np.uint8).view(np.uint32)  # as unsigned, negative is large
    return image_of(result, image.size)


def _weights(d: np.ndarray) -> np.ndarray:
    """Of the pixels at -1, 0, 1 and 2 for places ``d[n]`` between 0 and 1: cubic convolution (Keys, 1981) with a = -1."""
    e = 1 - d
    weights = np.stack([-d * e * e, e * (1 + d * e), d * (1 + d * e), -d * d * e], axis=1)
    weights = np.rint(weights * 2**14) / 2**14
    weights[:, 1] += 1 - weights.sum(axis=1)
    return weights.astype(np.float32)
