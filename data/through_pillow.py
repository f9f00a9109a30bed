"""Operations of Pillow on images that are arrays, uint8 ``[height, width, 3]``."""

from collections.abc import Callable
from functools import wraps

import numpy as np
from PIL import Image


def through_pillow(change: Callable) -> Callable:
    """The same change of an image for an array; further arguments are passed on."""

    @wraps(change)
    def changed(image: np.ndarray, *arguments, **options) -> np.ndarray:
        return np.array(change(Image.fromarray(image), *arguments, **options))

    return changed


def as_grey(values: np.ndarray) -> Image.Image:
    """The values in the same memory as if each were a grey pixel, for what Pillow does to all values alike; contiguous."""
    height = len(values)
    return Image.frombuffer("L", (values.size // height, height), values, "raw", "L", 0, 1)
