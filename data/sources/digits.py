"""scikit-learn's handwritten digits, which need no download: 8x8 pixels, upscaled to 32x32 and stored as JPEG.

Source: the UCI test set of handwritten digits, `sklearn.datasets.load_digits`.
"""

import io

import numpy as np
from PIL import Image

from data.sources.base import Listing, Names, Source
from data.sources.splits import hold_out

SIDE = 32
QUALITY = 95


class Digits(Source):
    """1,797 grey images of ten classes as RGB JPEG, resized to 32x32 with bicubic interpolation."""

    kind = name = "digits"

    def __init__(self, val_fraction: float):
        from sklearn.datasets import load_digits

        digits = load_digits()
        self._pixels = (digits.images * 255 / 16).round().astype(np.uint8)
        labels = digits.target.astype(np.int32)
        names = [f"digit{label}/{number:04d}" for number, label in enumerate(labels)]
        sizes = np.full(len(labels), 1000, np.int64)  # about what the JPEGs take
        classes = [str(name) for name in digits.target_names]
        self.listing = Listing(hold_out(names, labels, val_fraction), labels, sizes, Names(names), classes)

    def read(self, i: int) -> bytes:
        image = Image.fromarray(self._pixels[i]).resize((SIDE, SIDE), Image.Resampling.BICUBIC).convert("RGB")
        stored = io.BytesIO()
        image.save(stored, "JPEG", quality=QUALITY)
        return stored.getvalue()
