"""An RGB image as Pillow keeps it: four bytes a pixel, of which the last means nothing. To and from there is a plain copy."""

import numpy as np
from PIL import Image


def values_of(image: Image.Image) -> np.ndarray:
    """The values of an RGB image: uint8 ``[height, 4 * width]``, not to be written to."""
    return np.frombuffer(image.tobytes("raw", "RGBX"), np.uint8).reshape(image.height, -1)


def image_of(values: np.ndarray, size: tuple[int, int]) -> Image.Image:
    """The RGB image of that width and height that has those values, in an array of any dtype with these bytes."""
    return Image.frombytes("RGB", size, values, "raw", "RGBX")
