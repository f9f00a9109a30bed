"""Micro-batches and evaluation batches of features in the place of pixels, for a model whose backbone is frozen.

Where nothing is augmented, an image has the same features in every epoch. `data.feature_store` holds them.
"""

import numpy as np
import torch
from torch import Tensor

from data.batches import MicroBatches
from data.feature_store import BATCH, FeatureStore
from data.images.augment import NO_BOX
from data.reading.shards import Split
from recipes.schema import Recipe


class TrainViews:
    """The one view of each training image that all epochs show, in the order of the shards, in batches of `BATCH`.

    A batch is uint8 pixels ``[n, 3, size, size]``, their hashes as int64 ``[n]``, the number of the image that each row
    shows, int64 ``[n]``, and the names of unreadable images, each with the reason. Another image replaces an unreadable
    one, as in `MicroBatches`.
    """

    def __init__(self, split: Split, recipe: Recipe):
        self.split = split
        self._micro_batches = MicroBatches(split, recipe, 0, BATCH)
        self.item_bytes = self._micro_batches.item_bytes

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor, Tensor, list[str]]:
        images = np.arange(number * BATCH, min((number + 1) * BATCH, len(self.split)))
        pixels, _, replaced = self._micro_batches.images(images, np.zeros_like(images), 0, len(images))
        hashes = self._micro_batches.pixel_hashes(pixels, images)
        return pixels, torch.from_numpy(hashes.view(np.int64)), torch.from_numpy(images), replaced


class FeatureBatches(MicroBatches):
    """The micro-batches of a process with features, float32 ``[n, d]``, in the place of pixels."""

    def __init__(self, store: FeatureStore, split: Split, recipe: Recipe, first_position: int, micro_batch: int):
        super().__init__(split, recipe, first_position, micro_batch)
        self.store = store

    def images(
        self, samples: np.ndarray, copies: np.ndarray, epoch: int, own: int
    ) -> tuple[Tensor, list[tuple[int, int, int, int]], list[str]]:
        """Return what `MicroBatches.images` returns, with features in the place of pixels."""
        real = samples >= 0
        rows = self.store.rows(samples[real])
        features = np.zeros((len(samples), *rows["features"].shape[1:]), np.float32)
        features[real] = rows["features"]
        unreadable = samples[real] != rows["image"]
        replaced = [
            f"{self.split.sample_name(int(sample))} (found when the features were computed)"
            for sample in samples[real][unreadable]
        ]
        samples[real] = rows["image"]
        return torch.from_numpy(features), [NO_BOX] * len(samples), replaced

    def pixel_hashes(self, pixels: Tensor, samples: np.ndarray) -> np.ndarray:
        """Return the hashes of the pixels whose features these are."""
        hashes: np.ndarray = self.store.rows(samples)["pixels"]
        return hashes


class FeatureEvalBatches:
    """The images `first` to `stop` (exclusive) of a split for evaluation, in batches: features and int64 labels."""

    def __init__(self, store: FeatureStore, split: Split, first: int, stop: int, batch_size: int):
        self.store, self.split = store, split
        self.item_bytes = 0  # they are read in the process itself
        self.chunks = [range(start, min(start + batch_size, stop)) for start in range(first, stop, batch_size)]

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        chunk = self.chunks[number]
        features = self.store.rows(np.arange(chunk.start, chunk.stop))["features"]
        return torch.from_numpy(features.copy()), torch.from_numpy(
            self.split.labels[chunk.start : chunk.stop].astype(np.int64)
        )
