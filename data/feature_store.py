"""Features of images on disk: what a model's classifier receives for each, computed once.

The images are in parts, each in a file of its own that is complete or absent. So a computation that was killed
continues with the parts that are missing, and several ranks share the parts. Within a part, images go through the model
in batches of a fixed size. Their features are then the same for every number of ranks.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.atomic_io import replacing
from recipes.errors import UserError

BATCH = 64  # images per forward pass
_PART_BATCHES = 16
UNREADABLE = -1


def feature_rows(features: np.ndarray, images: np.ndarray, pixel_hashes: np.ndarray | None = None) -> np.ndarray:
    """Return the rows of a batch, a structured array ``[n]``.

    Args:
        features: float32 ``[n, d]``.
        images: int64 ``[n]``, the number of the image that each row is about, or `UNREADABLE`.
        pixel_hashes: uint64 ``[n]`` from `data.input_digest`; None: zeros.
    """
    rows = np.zeros(len(features), [("features", "<f4", features.shape[1:]), ("image", "<i8"), ("pixels", "<u8")])
    rows["features"], rows["image"] = features, images
    if pixel_hashes is not None:
        rows["pixels"] = pixel_hashes
    return rows


class FeatureStore:
    """The features of `count` images in a folder."""

    def __init__(self, folder: Path, count: int):
        self.folder, self.count = folder, count
        self._part_images = BATCH * _PART_BATCHES
        self.parts = range(-(-count // self._part_images))
        self._opened: dict[int, np.ndarray] = {}

    def missing(self) -> list[int]:
        """Return the numbers of the parts that are not computed yet."""
        return [part for part in self.parts if not self._file(part).exists()]

    def batches(self, part: int) -> range:
        """Return the numbers of the batches of a part; batch ``k`` begins at image ``k * BATCH``."""
        end = min((part + 1) * self._part_images, self.count)
        return range(part * _PART_BATCHES, -(-end // BATCH))

    def images_of(self, part: int) -> int:
        """Return the number of images of a part."""
        return min(self._part_images, self.count - part * self._part_images)

    def fill(self, parts: list[int], rows: Iterator[np.ndarray]) -> None:
        """Write parts.

        Args:
            parts: their numbers.
            rows: the rows of each batch of each of these parts, in order.

        Raises:
            UserError: a file cannot be written.
        """
        for part in parts:
            content = np.concatenate([next(rows) for _ in self.batches(part)])
            try:
                self.folder.mkdir(parents=True, exist_ok=True)
                with replacing(self._file(part)) as temporary, temporary.open("wb") as file:
                    np.save(file, content)
            except OSError as error:
                raise UserError(
                    f"features cannot be written to {self.folder} ({error.strerror}): free some space or choose "
                    f"another place"
                ) from None

    def rows(self, images: np.ndarray) -> np.ndarray:
        """Return the rows of some images, a structured array ``[n]`` with `features`, `image` and `pixels`."""
        parts, places = np.divmod(images, self._part_images)
        found = np.empty(len(images), self._part(0).dtype)
        for part in np.unique(parts):
            chosen = parts == part
            found[chosen] = self._part(int(part))[places[chosen]]
        return found

    def all_rows(self) -> np.ndarray:
        """Return the rows of all images."""
        return np.concatenate([self._part(part) for part in self.parts])

    def _part(self, part: int) -> np.ndarray:
        if part not in self._opened:
            # Mapped into memory, which all processes of a node share.
            self._opened[part] = np.load(self._file(part), mmap_mode="r", allow_pickle=False)
        return self._opened[part]

    def _file(self, part: int) -> Path:
        return self.folder / f"{part:06}.npy"
