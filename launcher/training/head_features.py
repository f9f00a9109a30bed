"""Features of a frozen backbone, computed once, on which the head of a model then trains.

Where only the classifier trains (`model.train=head`) and nothing is augmented, what it receives for an image
never changes. It is computed before the first step, and kept in the run directory for later starts.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from accelerate.utils import broadcast_object_list

from data.batches import EvalBatches
from data.feature_batches import TrainViews
from data.feature_store import BATCH, FeatureStore, feature_rows
from data.images.augment import is_augmented
from data.progress import say
from data.reading.shards import ShardSet
from launcher.engines.base import Engine
from launcher.evaluation.feature_extractor import FeatureExtractor, fill_parts
from launcher.training.on_all_ranks import raised_on_all_ranks
from launcher.world import print_on_main
from models.frozen import accept_features
from models.prepared import PreparedModel
from recipes.schema import Recipe


@dataclass(frozen=True)
class HeadFeatures:
    """The features of the training images and of the validation images, which are None if they are not kept."""

    train: FeatureStore
    val: FeatureStore | None


def trains_on_features(recipe: Recipe, model: PreparedModel) -> bool:
    """Prepare `model`, which is on the CPU, to train on features; return whether the recipe and the model allow it.

    Args:
        recipe: with its engine chosen.
    """
    if recipe.model.train != "head" or is_augmented(recipe) or recipe.engine.zero == 3:
        return False  # under ZeRO-3, no rank alone can compute the model's output
    is_random = bool(model.drop_path.branches or model.drop_path.dropouts)
    return not is_random and not model.has_batch_norm and accept_features(model.module, recipe.input.size)


def compute_features(engine: Engine, shards: ShardSet, folder: Path, workers: int) -> HeadFeatures:
    """Compute the features that `folder` does not hold yet, with all ranks; return all of them.

    Args:
        workers: loader processes per rank; 0: none.

    Raises:
        UserError: on every rank, if images or the folder cannot be read or written on one of them.
    """
    recipe, train = engine.recipe, shards.split("train")
    stores = HeadFeatures(
        FeatureStore(folder / "train", len(train)),
        # A mirror image would have features of its own.
        FeatureStore(folder / "val", len(shards.split("val")))
        if "val" in shards.splits and not recipe.input.eval_flip
        else None,
    )
    with FeatureExtractor(engine.module, recipe, engine.accelerator) as extractor:
        _fill(engine, stores.train, "train", TrainViews(train, recipe), _training_rows(extractor), workers)
        if stores.val:
            split = shards.split("val")
            batches = EvalBatches(split, recipe, 0, len(split), BATCH)
            _fill(engine, stores.val, "val", batches, extractor.evaluation_rows, workers)
    return stores


def _fill(
    engine: Engine, store: FeatureStore, split: str, batches: Any, rows: Callable[[Any], np.ndarray], workers: int
) -> None:
    """Compute the missing parts of a store; the ranks share them."""
    accelerator = engine.accelerator
    missing = broadcast_object_list([store.missing() if engine.is_main else None])[0]
    if not missing:
        return
    print_on_main(f"computing the features of {store.count:,} {split} images once: {store.folder}")
    own = missing[accelerator.process_index :: accelerator.num_processes]
    with raised_on_all_ranks():
        fill_parts(store, own, batches, rows, f"features of {split}", workers, shown=engine.is_main)


def _training_rows(extractor: FeatureExtractor) -> Callable[[Any], np.ndarray]:
    def rows(batch: Any) -> np.ndarray:
        pixels, hashes, images, replaced = batch
        for name in replaced:
            say(f"unreadable image, replaced by another one: {name}")
        return feature_rows(extractor(pixels), images.numpy(), hashes.numpy().view(np.uint64))

    return rows
