"""RandAugment's operations on colour and sharpness: timm's results bit for bit, several times as fast.

For each image, Pillow fills a table of 256 entries per channel in Python and then looks up every value. These functions
use one or two NumPy operations on the whole array instead, or Pillow's blend of images that are viewed as grey ones.

An image is uint8 ``[height, width, 3]``, contiguous.
"""

from typing import Any

import numpy as np
from PIL import Image, ImageStat

# timm passes every operation the fill colour and the interpolation; the operations here ignore both (`**_`).


def invert(image: np.ndarray, **_: Any) -> np.ndarray:
    """Return the negative of an image."""
    return ~image


def solarize(image: np.ndarray, threshold: int, **_: Any) -> np.ndarray:
    """Return an image with all values of at least `threshold` inverted; 256 changes nothing."""
    # As uint8, minus true is 255, and an exclusive or with 255 inverts a byte.
    return image ^ np.negative((image >= threshold).view(np.uint8))


def solarize_add(image: np.ndarray, add: int, **_: Any) -> np.ndarray:
    """Return an image with `add`, from 0 to 128, added to all values below 128."""
    return image + (image < 128) * np.uint8(add)


def posterize(image: np.ndarray, bits: int, **_: Any) -> np.ndarray:
    """Return an image that keeps only the upper `bits` of the eight bits of each value."""
    return image & np.uint8(0x100 - (1 << (8 - bits)))


def brightness(image: np.ndarray, factor: float, **_: Any) -> np.ndarray:
    """Return a blend of black (factor 0) and the image (1); above 1 it is brighter."""
    return _blend(np.zeros_like(image), image, factor)


def contrast(image: np.ndarray, factor: float, **_: Any) -> np.ndarray:
    """Return a blend of the image's mean grey (factor 0) and the image (1); above 1 it has more contrast."""
    mean = int(ImageStat.Stat(Image.fromarray(image).convert("L")).mean[0] + 0.5)
    return _blend(np.full_like(image, mean), image, factor)


def sharpness(image: np.ndarray, factor: float, **_: Any) -> np.ndarray:
    """Return a blend of the smoothed image (factor 0) and the image (1); above 1 it is sharper."""
    return _blend(_smooth(image), image, factor)


def _blend(start: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """Return Pillow's blend of two images."""
    return np.array(Image.blend(_as_grey(start), _as_grey(image), factor)).reshape(image.shape)


def _as_grey(image: np.ndarray) -> Image.Image:
    """Return a Pillow image on the same memory in which each value is a grey pixel, so that no bytes are rearranged."""
    height, width, channels = image.shape
    return Image.frombuffer("L", (width * channels, height), image, "raw", "L", 0, 1)


def _smooth(image: np.ndarray) -> np.ndarray:
    """Return Pillow's SMOOTH: the rounded mean of 3 x 3 pixels, the middle one with weight 5; borders are unchanged."""
    height, width, channels = image.shape
    if min(height, width) < 3:
        return image
    wide = image.reshape(height, -1).astype(np.uint16)
    three_rows = wide[:-2] + wide[1:-1]
    three_rows += wide[2:]
    sums = three_rows[:, : -2 * channels] + three_rows[:, channels:-channels]
    sums += three_rows[:, 2 * channels :]
    sums += wide[1:-1, channels:-channels] << 2
    # The weights add up to 13. (2 s + 13) // 26 rounds s / 13 to nearest, and no s / 13 lies halfway between integers.
    sums *= 2
    sums += 13
    sums //= 26
    smoothed = image.copy()
    smoothed[1:-1, 1:-1] = sums.reshape(height - 2, width - 2, channels)
    return smoothed
