"""timm's operations of RandAugment on tones and sharpness: bit for bit what it makes with Pillow, two to five times as fast.

Pillow writes a table of 256 entries a channel in Python for each image, then looks up every value. But these operations are
one or two on whole arrays of bytes.
"""

import numpy as np
from PIL import Image, ImageChops

from data.pillow_memory import image_of, values_of


def invert(image: Image.Image, **_) -> Image.Image:
    """Return the negative of an RGB image."""
    return ImageChops.invert(image)


def solarize(image: Image.Image, threshold: int, **_) -> Image.Image:
    """Return an RGB image with the values from `threshold` on inverted; from 256 on none are."""
    values = values_of(image)
    return image_of(values ^ np.negative((values >= threshold).view(np.uint8)), image.size)


def solarize_add(image: Image.Image, add: int, **_) -> Image.Image:
    """Return an RGB image with `add`, 0 to 128, added to the values below 128."""
    values = values_of(image)
    return image_of(values + (values < 128) * np.uint8(add), image.size)


def posterize(image: Image.Image, bits: int, **_) -> Image.Image:
    """Return an RGB image of whose values, eight bits each, only the upper `bits` are kept."""
    return image_of(values_of(image) & np.uint8(0x100 - (1 << (8 - bits))), image.size)


def sharpness(image: Image.Image, factor: float, **_) -> Image.Image:
    """Return an RGB image between its smoothed version, 0, and itself, 1; beyond 1 it is sharpened."""
    return Image.blend(_smoothed(image), image, factor)


def _smoothed(image: Image.Image) -> Image.Image:
    """Pillow's SMOOTH: the rounded mean of 3 x 3 pixels, of which the middle one counts five times; the border stays as it is."""
    if min(image.size) < 3:
        return image
    values = values_of(image)
    wide = values.astype(np.uint16)
    of_three_rows = wide[:-2] + wide[1:-1]
    of_three_rows += wide[2:]
    sums = of_three_rows[:, :-8] + of_three_rows[:, 4:-4]
    sums += of_three_rows[:, 8:]
    sums += wide[1:-1, 4:-4] << 2
    smoothed = values.copy()
    smoothed[1:-1, 4:-4] = (2 * sums + 13) // 26  # a thirteenth, rounded; no sum lies between two
    return image_of(smoothed, image.size)
