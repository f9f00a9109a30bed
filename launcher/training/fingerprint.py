"""A digest of all inputs of an optimizer step, to compare two machines or two cuts of the batch."""

import hashlib
from collections.abc import Iterator

import numpy as np
import torch

from data.batches import MicroBatch, MicroBatches
from data.loader import load_steps
from data.on_device import DevicePreprocessor
from launcher.cut import cut_for_model
from launcher.recipe_shards import open_shards
from models.prepared import prepare_model
from models.stochastic_depth import StochasticDepth
from recipes.schema import Recipe


def fingerprints(
    recipe: Recipe, steps: range, world_size: int, micro_batch: int | None, workers: int
) -> Iterator[tuple[int, str]]:
    """Yield (step, digest). This process prepares the inputs of all ranks of the cut, one rank after the other.

    The SHA-256 covers each position of the global batch in turn: sample, label, mixing partner's label, mixing
    lambda, the bits of the finished float32 pixels, and what stochastic depth and dropout draw. Padding has no weight
    in the loss and is left out.

    Raises:
        UserError: shards are missing, or the cut is impossible.
    """
    shards = open_shards(recipe)
    split = shards.split("train")
    with torch.device("meta"):
        model = prepare_model(recipe, len(shards.classes))
    cut = cut_for_model(recipe, world_size, micro_batch, model.has_batch_norm)
    preprocessor = DevicePreprocessor(recipe, torch.device("cpu"))
    feeds = [
        load_steps(
            MicroBatches(split, recipe, cut.first_position(rank), cut.micro_batch),
            steps,
            cut.accumulation,
            workers,
            pin=False,
        )
        for rank in range(world_size)
    ]
    for step in steps:
        digest = hashlib.sha256()
        for feed in feeds:
            for _ in range(cut.accumulation):
                _add(digest, next(feed), preprocessor, model.drop_path, recipe.batch.global_)
        yield step, digest.hexdigest()


def _add(
    digest: "hashlib._Hash",
    batch: MicroBatch,
    preprocessor: DevicePreprocessor,
    drop_path: StochasticDepth,
    global_batch: int,
) -> None:
    images = preprocessor.images(batch)
    drop_path.draw(batch.step, batch.positions)
    facts = torch.stack([batch.positions, batch.samples, batch.labels, batch.partner_labels], dim=1).numpy()
    for row in range(int((batch.positions < global_batch).sum())):
        drawn = [one.numpy() for one in drop_path.drawn_for(row)]
        for part in (facts[row], batch.lam[row].numpy(), images[row].numpy(), *drawn):
            digest.update(np.ascontiguousarray(part).tobytes())
