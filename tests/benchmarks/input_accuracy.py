"""Does training on our decoded and augmented pixels reach the same accuracy as training on timm's transform?

    python -m tests.benchmarks.input_accuracy SHARDS [--epochs 4] [--seeds 3] [--size 64]

A small ResNet is trained from scratch on cats and dogs, once on our pixels and once on timm's for the same keys. The
two differ only by rounding and scaled decoding. At 64 pixels most crops are decoded at a half or a quarter, which is
the hardest case. Compare the difference with the standard deviation between seeds.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from data.batches import EvalBatches, MicroBatches
from data.images.augment import NO_BOX, TrainTransform, seed_generators, timm_train_transform
from data.images.decode import decode
from data.loader import load_evaluation, load_steps
from data.on_device import DevicePreprocessor
from data.reading.shards import ShardSet
from models.build import build
from recipes.load import load
from recipes.randomness import random_key
from recipes.schema import Recipe


class TimmsTransform(TrainTransform):
    """timm's transform of the fully decoded image, with the same keys."""

    def __init__(self, recipe: Recipe):
        super().__init__(recipe)
        self.timms = timm_train_transform(recipe)

    def __call__(self, image: bytes, epoch: int, sample: int):
        decoded = decode(image)
        seed_generators(random_key(self.recipe.seed, "augment", epoch, sample))
        return torch.from_numpy(np.ascontiguousarray(self.timms(decoded))), NO_BOX


def accuracy(shards: ShardSet, transform: type, seed: int, epochs: int, size: int) -> tuple[float, float]:
    """Return accuracy and loss over the validation images after `epochs` epochs."""
    changes = [f"seed={seed}", f"input.size={size}", f"schedule.epochs={epochs}", "schedule.warmup_epochs=0"]
    recipe = load(
        "convnext_atto_cats_dogs", [*changes, "model.name=resnet10t", "model.init_std=null", "optimizer.lr=1e-3"]
    )
    dataset = MicroBatches(shards.split("train"), recipe, 0, recipe.batch.global_)
    dataset.transform = transform(recipe)
    model = build(recipe, len(shards.classes))
    optimizer = torch.optim.AdamW(model.parameters(), recipe.optimizer.lr, weight_decay=recipe.optimizer.weight_decay)
    preprocessor = DevicePreprocessor(recipe, torch.device("cpu"))
    for batch in load_steps(dataset, range(epochs * dataset.steps_per_epoch), 1, workers=1, pin=False):
        F.cross_entropy(model(preprocessor.images(batch)), batch.labels).backward()
        optimizer.step()
        optimizer.zero_grad()
    model.eval()
    val = shards.split("val")
    right, loss = 0, 0.0
    with torch.inference_mode():
        for pixels, labels in load_evaluation(EvalBatches(val, recipe, 0, len(val), 64), workers=1, pin=False):
            logits = model(preprocessor.normalised(pixels))
            right += (logits.argmax(1) == labels).sum().item()
            loss += F.cross_entropy(logits, labels, reduction="sum").item()
    return right / len(val), loss / len(val)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--size", type=int, default=64)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    shards = ShardSet.open(arguments.shards)
    results = []  # per seed: accuracy and loss of ours and of timm's
    for seed in range(arguments.seeds):
        ours, our_loss = accuracy(shards, TrainTransform, seed, arguments.epochs, arguments.size)
        theirs, their_loss = accuracy(shards, TimmsTransform, seed, arguments.epochs, arguments.size)
        results.append([(ours, our_loss), (theirs, their_loss)])
        print(
            f"seed {seed}: ours {ours:.2%}, loss {our_loss:.4f}; timm's {theirs:.2%}, loss {their_loss:.4f}", flush=True
        )
    found = np.array(results)
    means, differences = found.mean(axis=0), found[:, 0] - found[:, 1]
    between_seeds = found.std(axis=0, ddof=1).mean(axis=0) if len(found) > 1 else (np.nan, np.nan)
    for number, name in enumerate(("accuracy", "loss")):
        print(
            f"{name}: ours {means[0, number]:.4f}, timm's {means[1, number]:.4f}, "
            f"mean difference {differences[:, number].mean():+.4f}; "
            f"standard deviation between seeds {between_seeds[number]:.4f}"
        )
