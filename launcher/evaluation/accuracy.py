"""Accuracy over a whole split, every image counted exactly once at any number of processes."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from torch import nn
from torch.nn import functional as F

from data.batches import EvalBatches
from data.feature_batches import FeatureEvalBatches
from data.feature_store import FeatureStore
from data.loader import load_evaluation
from data.on_device import DevicePreprocessor
from data.reading.shards import Split
from recipes.schema import Recipe


@dataclass(frozen=True)
class Accuracy:
    """The accuracy over a whole split.

    Attributes:
        images: evaluated.
        top1: share of images whose likeliest class is the label, in 0..1.
        top5: share of images whose label is among the five likeliest classes; None with five classes or fewer.
        loss: mean cross-entropy.
    """

    images: int
    top1: float
    top5: float | None
    loss: float

    def to_dict(self) -> dict[str, float | None]:
        """Return the fields by name, for the log of the run."""
        return asdict(self)


def measure_accuracy(
    model: nn.Module,
    split: Split,
    recipe: Recipe,
    accelerator,
    batch_size: int,
    workers: int,
    record: Callable[[torch.Tensor], None] = lambda logits: None,
    features: FeatureStore | None = None,
) -> Accuracy:
    """Evaluate `model` on `split` with all processes of `accelerator`; return the accuracy over the whole split.

    Each process evaluates a contiguous part. Nothing is padded: the sizes of the parts differ by at most one image, and
    the sums are exact counts. Every process makes the same number of forward passes, because under ZeRO-3 each pass
    gathers the parameters from all of them. A process with fewer batches repeats its last one without counting it.

    Args:
        batch_size: images per forward pass of one process.
        workers: loader processes per process; 0: none.
        features: those of the split's images, for a model that `models.frozen.accept_features` has prepared; None: the
            images are read.
        record: called with the logits of every batch of this process, float32 ``[n, classes]``, in the split's order.
    """
    rank, world, device = accelerator.process_index, accelerator.num_processes, accelerator.device
    first, stop = len(split) * rank // world, len(split) * (rank + 1) // world
    if features is None:
        batches: EvalBatches | FeatureEvalBatches = EvalBatches(split, recipe, first, stop, batch_size)
    else:
        batches, workers = FeatureEvalBatches(features, split, first, stop, batch_size), 0
    rounds = math.ceil(math.ceil(len(split) / world) / batch_size)
    preprocessor = DevicePreprocessor(recipe, device)
    sums = torch.zeros(4, dtype=torch.float64, device=device)
    was_training = model.training
    model.eval()
    try:
        # Not inference_mode: training later uses parameters that ZeRO-3 gathers in these passes.
        with torch.no_grad(), accelerator.autocast():
            loaded = load_evaluation(batches, workers, device.type == "cuda")
            size = recipe.input.evaluated_size
            images = torch.zeros(1, 3, size, size, device=device)
            for number in range(rounds):
                if number < len(batches):
                    inputs, labels = next(loaded)
                    inputs = inputs.to(device, non_blocking=True)
                    images = preprocessor.normalised(inputs) if features is None else inputs
                logits = evaluated_logits(model, images, recipe)
                if number < len(batches):
                    record(logits)
                    sums += _counts(logits, labels.to(device, non_blocking=True))
    finally:
        model.train(was_training)
    images, top1, top5, loss = accelerator.reduce(sums, reduction="sum").tolist()
    many_classes = logits.shape[1] > 5
    return Accuracy(int(images), top1 / images, top5 / images if many_classes else None, loss / images)


def evaluated_logits(model: nn.Module, images: torch.Tensor, recipe: Recipe) -> torch.Tensor:
    """Return the logits of normalised images, float32 ``[n, classes]``, as the recipe evaluates them."""
    logits = model(images).float()
    if recipe.input.eval_flip:
        logits = (logits + model(images.flip(-1)).float()) / 2
    return logits


def _counts(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Return counts of a batch, float64 ``[4]``: images, right at the first guess, right among five, summed loss."""
    guesses = logits.topk(min(5, logits.shape[1])).indices
    right = guesses == labels[:, None]
    loss = F.cross_entropy(logits, labels, reduction="sum")
    # `new_full` counts on the device; a copy from the host would wait for the device.
    counts = [labels.new_full((), len(labels)), right[:, 0].sum(), right.sum(), loss]
    return torch.stack([count.double() for count in counts])
