"""Operations of Pillow on images that are arrays, uint8 ``[height, width, 3]``."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image


@dataclass(frozen=True)
class PillowOperation:
    """Applies a function on Pillow images to an array; further arguments are passed on.

    A class instead of a closure, because loader workers that are not forked receive it by pickle.
    """

    change: Callable[..., Image.Image]

    def __call__(self, image: np.ndarray, *arguments: Any, **options: Any) -> np.ndarray:
        return np.array(self.change(Image.fromarray(image), *arguments, **options))
