"""Computes features: what a model's classifier receives."""

from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor, nn

from data.feature_store import FeatureStore, feature_rows
from data.loader import load_in_order
from data.on_device import DevicePreprocessor
from data.progress import progress
from models.frozen import classifier_layers
from recipes.schema import Recipe


class FeatureExtractor:
    """Computes the features of batches of pixels inside a `with` block, in which the model is in evaluation mode."""

    def __init__(self, model: nn.Module, recipe: Recipe, accelerator: Accelerator):
        self.model, self.recipe, self.accelerator = model, recipe, accelerator
        self._preprocessor = DevicePreprocessor(recipe, accelerator.device)
        self._received: list[Tensor] = []

    def __enter__(self) -> "FeatureExtractor":
        self._was_training = self.model.training
        self.model.eval()
        head = classifier_layers(self.model)[0]
        self._hook = head.register_forward_pre_hook(lambda _, inputs: self._received.append(inputs[0]))
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._hook.remove()
        self.model.train(self._was_training)

    def __call__(self, pixels: Tensor) -> np.ndarray:
        """Return float32 ``[n, d]`` for uint8 ``[n, 3, size, size]``."""
        with torch.no_grad(), self.accelerator.autocast():
            self.model(self._preprocessor.normalised(pixels.to(self.accelerator.device, non_blocking=True)))
        features: np.ndarray = self._received.pop().flatten(1).float().cpu().numpy()
        return features

    def evaluation_rows(self, batch: tuple[Tensor, Tensor]) -> np.ndarray:
        """Return the rows of a batch of `data.batches.EvalBatches`, whose images are all readable."""
        pixels, _ = batch
        return feature_rows(self(pixels), np.zeros(len(pixels), np.int64))


def fill_parts(
    store: FeatureStore,
    parts: list[int],
    batches: Any,
    rows: Callable[[Any], np.ndarray],
    what: str,
    workers: int,
    shown: bool = True,
) -> None:
    """Compute and write parts of a store, and show the progress.

    Args:
        store: where they are written.
        parts: their numbers.
        batches: the images in the order of the store, in batches of `data.feature_store.BATCH` by their numbers.
        rows: returns the rows of a batch, as `feature_rows` makes them.
        what: the task, for the progress.
        workers: loader processes; 0: none.
        shown: whether to show the progress.

    Raises:
        UserError: images cannot be read, or the parts cannot be written.
    """
    places = [number for part in parts for number in store.batches(part)]

    def computed() -> Iterator[np.ndarray]:
        pin, count = torch.cuda.is_available(), 0
        with progress(what, sum(map(store.images_of, parts)), "images", shown and len(places) > 1) as done:
            # A single batch is not worth the start of a process.
            for batch in load_in_order(batches, places, min(workers, len(places) - 1), pin):
                found = rows(batch)
                count += len(found)
                done(count)
                yield found

    if parts:
        store.fill(parts, computed())
