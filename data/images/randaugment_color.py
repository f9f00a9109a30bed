"""timm's operations of RandAugment on tones and sharpness: bit for bit what it makes with Pillow, several times as fast.

Pillow writes a table of 256 entries a channel in Python for each image, then looks up every value. But these operations are
one or two on whole arrays of bytes, or a blend of them that does not ask which of them make a pixel.

An image is uint8 ``[height, width, 3]``, contiguous.
"""

import numpy as np
from PIL import Image, ImageStat


def invert(image: np.ndarray, **_) -> np.ndarray:
    """Return the negative of an image."""
    return ~image


def solarize(image: np.ndarray, threshold: int, **_) -> np.ndarray:
    """Return an image with the values from `threshold` on inverted; from 256 on none are."""
    return image ^ np.negative((image >= threshold).view(np.uint8))


def solarize_add(image: np.ndarray, add: int, **_) -> np.ndarray:
    """Return an image with `add`, 0 to 128, added to the values below 128."""
    return image + (image < 128) * np.uint8(add)


def posterize(image: np.ndarray, bits: int, **_) -> np.ndarray:
    """Return an image of whose values, eight bits each, only the upper `bits` are kept."""
    return image & np.uint8(0x100 - (1 << (8 - bits)))


def brightness(image: np.ndarray, factor: float, **_) -> np.ndarray:
    """Return an image between black, 0, and itself, 1; beyond 1 it is brighter."""
    return _blended(np.zeros_like(image), image, factor)


def contrast(image: np.ndarray, factor: float, **_) -> np.ndarray:
    """Return an image between its mean grey, 0, and itself, 1; beyond 1 it has more contrast."""
    mean = int(ImageStat.Stat(Image.fromarray(image).convert("L")).mean[0] + 0.5)
    return _blended(np.full_like(image, mean), image, factor)


def sharpness(image: np.ndarray, factor: float, **_) -> np.ndarray:
    """Return an image between its smoothed version, 0, and itself, 1; beyond 1 it is sharpened."""
    return _blended(_smoothed(image), image, factor)


def _blended(start: np.ndarray, image: np.ndarray, factor: float) -> np.ndarray:
    """Pillow's blend from one image, 0, to another, 1."""
    return np.array(Image.blend(_as_grey(start), _as_grey(image), factor)).reshape(image.shape)


def _as_grey(image: np.ndarray) -> Image.Image:
    """The same memory as if each value were a grey pixel."""
    height, width, colours = image.shape
    return Image.frombuffer("L", (width * colours, height), image, "raw", "L", 0, 1)


def _smoothed(image: np.ndarray) -> np.ndarray:
    """Pillow's SMOOTH: the rounded mean of 3 x 3 pixels, of which the middle one counts five times; the border stays as it is."""
    height, width, colours = image.shape
    if min(height, width) < 3:
        return image
    wide = image.reshape(height, -1).astype(np.uint16)
    of_three_rows = wide[:-2] + wide[1:-1]
    of_three_rows += wide[2:]
    sums = of_three_rows[:, : -2 * colours] + of_three_rows[:, colours:-colours]
    sums += of_three_rows[:, 2 * colours :]
    sums += wide[1:-1, colours:-colours] << 2
    sums *= 2
    sums += 13
    sums //= 26  # a thirteenth, rounded; no sum lies between two
    smoothed = image.copy()
    smoothed[1:-1, 1:-1] = sums.reshape(height - 2, width - 2, colours)
    return smoothed
