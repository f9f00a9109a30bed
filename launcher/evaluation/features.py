"""`bigbatch features`: writes what a model's classifier receives for each image of some shards or of a folder."""

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor, nn

from data.atomic_io import replacing
from data.batches import EvalBatches
from data.loader import load_evaluation
from data.names import printable
from data.on_device import DevicePreprocessor
from data.progress import progress, say
from data.reading.manifest import MANIFEST
from data.reading.shards import ShardSet
from launcher.engines.base import make_accelerator
from launcher.evaluation.image_files import find_images, load_images
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
    data: str,
    destination: Path,
    recipe_name: str | None = None,
    ema: bool = True,
    step: int | None = None,
    workers: int | None = None,
    modules: Sequence[str] = (),
) -> tuple[int, int, int]:
    """Write the features of every image of some shards, or of a folder of images, to an ``.npz`` file.

    The file has the arrays `features` (float32 ``[n, d]``) and `ids` (text ``[n]``); of shards also `labels` (int64
    ``[n]``), `splits` (text ``[n]``) and `classes` (text). Images are viewed as in an evaluation. Those of a folder
    that cannot be read are named and left out. The file appears when it is complete.

    Returns the numbers of images, of values for each, and of images that could not be read.

    Args:
        origin: a run directory, a checkpoint in one, a weights file, or the name of a timm model with pretrained
            weights.
        data: folder or URL of shards, or a folder of images.
        destination: the file to write.
        recipe_name: the recipe of a weights file that does not name one.
        ema: use a run's EMA weights if it has them.
        step: of the run's checkpoint; None: the newest.
        workers: processes that prepare images; None: what the CPUs allow.
        modules: the user's modules that a weights file may import, as `recipe_of` says.

    Raises:
        UserError: weights, recipe or images are missing or do not fit each other, or the file cannot be written.
    """
    if destination.suffix != ".npz":
        raise UserError(f"features are an .npz file, and {destination} does not end in that: name it {destination}.npz")
    recipe, weights, title = _recipe_and_weights(origin, recipe_name, ema, step, modules)
    recipe = recipe.variant(data={"classes": None, "path": data}, model={"train": "all"})
    # Without `manifest.json` a folder has no shards.
    images = find_images([Path(data)]) if Path(data).is_dir() and not (Path(data) / MANIFEST).exists() else None
    shards = open_shards(recipe) if images is None else None
    model = build(recipe, len(shards.classes) if shards else 1)
    fit_weights(model, weights, origin)  # of the backbone: a head for other classes stays out
    accelerator = make_accelerator(recipe)
    say(f"features of the {title}")
    extractor = _Extractor(model.to(accelerator.device).eval(), recipe, accelerator)
    arrays = _of_shards(extractor, shards, workers) if shards else _of_files(extractor, images or [], workers)
    try:
        destination.parent.mkdir(parents=True, exist_ok=True)
        with replacing(destination) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UserError(f"{destination} cannot be written ({error.strerror}): choose another file") from None
    count, values = arrays["features"].shape
    return count, values, len(images) - count if images else 0


def _of_shards(extractor: "_Extractor", shards: ShardSet, workers: int | None) -> dict[str, Any]:
    """Return the arrays of the file for shards, split by split."""
    splits = {name: split for name, split in shards.splits.items() if len(split)}
    workers, pin = default_workers() if workers is None else workers, extractor.device.type == "cuda"
    features = []
    for name, split in splits.items():
        batches = EvalBatches(split, extractor.recipe, 0, len(split), _BATCH_SIZE)
        pixels = (pixels for pixels, _ in load_evaluation(batches, workers, pin))
        features.append(extractor.of(pixels, f"features of {name}", len(split)))
    return {
        "features": np.concatenate(features),
        "labels": np.concatenate([np.asarray(split.labels, np.int64) for split in splits.values()]),
        "ids": np.array([split.sample_name(sample) for split in splits.values() for sample in range(len(split))]),
        "splits": np.repeat(list(splits), [len(split) for split in splits.values()]),
        "classes": np.array(shards.classes),
    }


def _of_files(extractor: "_Extractor", images: list[Path], workers: int | None) -> dict[str, Any]:
    """Return the arrays of the file for images, without those that cannot be read, which are named."""
    unreadable: dict[int, str] = {}

    def pixels() -> Iterator[Tensor]:
        for _, readable, errors in load_images(images, extractor.recipe, workers):
            unreadable.update(errors)
            for number, error in errors.items():
                say(f"unreadable: {printable(str(images[number]))} ({error})")
            if len(readable):
                yield readable

    features = extractor.of(pixels(), "features", len(images))
    return {
        "features": features,
        "ids": np.array([str(image) for number, image in enumerate(images) if number not in unreadable]),
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

    @property
    def device(self) -> torch.device:
        return torch.device(self.accelerator.device)

    def of(self, batches: Iterable[Tensor], what: str, total: int) -> np.ndarray:
        """Return the features of batches of uint8 pixels ``[n, 3, size, size]``, in order; `total` is for the progress.

        Raises:
            UserError: there is no batch.
        """
        parts: list[np.ndarray] = []
        with (
            progress(what, total, "images", shown=total > _BATCH_SIZE) as done,
            torch.inference_mode(),
            self.accelerator.autocast(),
        ):
            for pixels in batches:
                self.model(self.preprocessor.normalised(pixels.to(self.device, non_blocking=True)))
                parts.append(self.received.pop().flatten(1).float().cpu().numpy())
                done(sum(map(len, parts)))
        if not parts:
            raise UserError("none of the images can be read, so there are no features: see the reasons above")
        return np.concatenate(parts)
