"""Operations of Pillow on images that are arrays, uint8 ``[height, width, 3]``."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class PillowOperation:
    """A change of a Pillow image, for an array; further arguments are passed on. Can be pickled, as loader processes may need."""

    change: Callable

    def __call__(self, image: np.ndarray, *arguments, **options) -> np.ndarray:
        return np.array(self.change(Image.fromarray(image), *arguments, **options))
