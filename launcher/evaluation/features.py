"""`bigbatch features`: writes what a model's classifier receives for each image of some shards."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from data.atomic_io import replacing
from data.batches import EvalBatches
from data.loader import load_evaluation
from data.on_device import DevicePreprocessor
from data.progress import progress, say
from data.reading.shards import ShardSet, Split
from launcher.engines.base import make_accelerator
from launcher.evaluation.saved_weights import open_weights
from launcher.recipe_shards import open_shards
from launcher.workers import default_workers
from models.build import build
from models.frozen import classifier_layers
from models.pretrained import timm_pretrained
from models.weights import fit_weights
from recipes.errors import UserError
from recipes.load import load
from recipes.schema import Recipe

_BATCH_SIZE = 64


def write_features(
    origin: str,
    shards_path: str,
    destination: Path,
    recipe_name: str | None = None,
    ema: bool = True,
    step: int | None = None,
    workers: int | None = None,
    modules: Sequence[str] = (),
) -> tuple[int, int]:
    """Write the features of every image of some shards to an ``.npz`` file; return how many images and values each.

    The file has the arrays `features` (float32 ``[n, d]``), `labels` (int64 ``[n]``), `ids` and `splits` (text
    ``[n]``), and `classes` (text). Images are viewed as in an evaluation. The file appears when it is complete.

    Args:
        origin: a run directory, a checkpoint in one, a weights file, or the name of a timm model with pretrained
            weights.
        shards_path: folder or URL of the shards.
        destination: the file to write.
        recipe_name: the recipe of a weights file that does not name one.
        ema: use a run's EMA weights if it has them.
        step: of the run's checkpoint; None: the newest.
        workers: processes that prepare images; None: what the CPUs allow.
        modules: the user's modules that a weights file may import, as `recipe_of` says.

    Raises:
        UserError: weights, recipe or shards are missing or do not fit each other, or the file cannot be written.
    """
    if destination.suffix != ".npz":
        raise UserError(f"features are an .npz file, and {destination} does not end in that: name it {destination}.npz")
    recipe, weights, title = _recipe_and_weights(origin, recipe_name, ema, step, modules)
    recipe = recipe.variant(data={"classes": None, "path": shards_path}, model={"train": "all"})
    shards = open_shards(recipe)
    model = build(recipe, len(shards.classes))
    fit_weights(model, weights, origin)  # of the backbone: a head for other classes stays out
    accelerator = make_accelerator(recipe)
    say(f"features of the {title}")
    workers = default_workers() if workers is None else workers
    extractor = _Extractor(model.to(accelerator.device).eval(), recipe, accelerator)
    found = [extractor.of(split, workers) for split in shards.splits.values() if len(split)]
    features = np.concatenate(found)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with replacing(destination) as temporary, temporary.open("wb") as file:
            np.savez(file, features=features, **_names_and_labels(shards))
    except OSError as error:
        raise UserError(f"{destination} cannot be written ({error.strerror}): choose another file") from None
    return features.shape


def _names_and_labels(shards: ShardSet) -> dict[str, Any]:
    """Return the arrays of the file that describe the images, in the order of the splits."""
    splits = {name: split for name, split in shards.splits.items() if len(split)}
    return {
        "labels": np.concatenate([np.asarray(split.labels, np.int64) for split in splits.values()]),
        "ids": np.array([split.sample_name(sample) for split in splits.values() for sample in range(len(split))]),
        "splits": np.repeat(list(splits), [len(split) for split in splits.values()]),
        "classes": np.array(shards.classes),
    }


def _recipe_and_weights(
    origin: str, recipe_name: str | None, ema: bool, step: int | None, modules: Sequence[str]
) -> tuple[Recipe, dict[str, Tensor], str]:
    """Return recipe and weights of what `origin` names, and a title for them."""
    if not Path(origin).exists() and timm.is_model(origin):
        pretrained = timm_pretrained(origin, say)
        return _timm_recipe(origin), pretrained, f"pretrained weights of {origin}"
    recipe, weights = open_weights(Path(origin), recipe_name, ema, step, modules)
    return recipe, weights.tensors, weights.title


def _timm_recipe(name: str) -> Recipe:
    """Return a recipe that builds a timm model and views images as timm does for its pretrained weights."""
    cfg: Any = timm.get_pretrained_cfg(name)  # not None, because the weights have been loaded
    return load("convnext_tiny_in1k").variant(
        model={"name": name, "init_std": None, "drop_path": 0.0, "layer_scale": None},
        input={
            "size": cfg.input_size[-1],
            "interpolation": "bilinear" if cfg.interpolation == "bilinear" else "bicubic",
            "eval_crop": cfg.crop_pct,
            "mean": cfg.mean,
            "std": cfg.std,
        },
    )


class _Extractor:
    """Computes the inputs of a model's classifier, float32 ``[n, d]``."""

    def __init__(self, model: nn.Module, recipe: Recipe, accelerator: Any):
        self.model, self.recipe, self.accelerator = model, recipe, accelerator
        self.preprocessor = DevicePreprocessor(recipe, accelerator.device)
        self.received: list[Tensor] = []
        classifier_layers(model)[0].register_forward_pre_hook(lambda _, inputs: self.received.append(inputs[0]))

    def of(self, split: Split, workers: int) -> np.ndarray:
        """Return the features of a split's images, in order."""
        device = self.accelerator.device
        batches = EvalBatches(split, self.recipe, 0, len(split), _BATCH_SIZE)
        parts: list[np.ndarray] = []
        showing = progress(f"features of {split.name}", len(split), "images", shown=len(split) > _BATCH_SIZE)
        with showing as done, torch.inference_mode(), self.accelerator.autocast():
            for pixels, _ in load_evaluation(batches, workers, device.type == "cuda"):
                self.model(self.preprocessor.normalised(pixels.to(device, non_blocking=True)))
                parts.append(self.received.pop().flatten(1).float().cpu().numpy())
                done(sum(map(len, parts)))
        return np.concatenate(parts)
