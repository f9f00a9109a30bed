"""`bigbatch features`: writes what a model's classifier receives for each image of some shards or of a folder."""

import hashlib
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from torch import Tensor

from data.atomic_io import replacing, write_atomically
from data.batches import EvalBatches
from data.feature_store import BATCH, UNREADABLE, FeatureStore, feature_rows
from data.printable_text import printable
from data.progress import say
from data.reading.manifest import MANIFEST
from data.reading.shards import ShardSet
from data.reading.storage import place_of
from launcher.engines.base import make_accelerator
from launcher.evaluation.feature_extractor import FeatureExtractor, fill_parts
from launcher.evaluation.image_files import UPRIGHT_NOTE, ImageBatches, find_images
from launcher.evaluation.saved_weights import open_weights
from launcher.recipe_shards import open_shards
from launcher.runs.output_file import check_output
from launcher.workers import default_workers
from models.build import build
from models.pretrained import timm_pretrained
from models.weights import fit_weights
from recipes.errors import UserError
from recipes.load import load
from recipes.local_paths import local_path
from recipes.schema import Recipe

_PARTS_ENDING = ".parts"  # of the folder beside the file in which a command that was interrupted left its work


def write_features(
    origin: str,
    data: str,
    destination: Path,
    recipe_name: str | None = None,
    ema: bool = True,
    step: int | None = None,
    workers: int | None = None,
    modules: Sequence[str] = (),
    upright: bool = False,
) -> tuple[int, int, int]:
    """Write the features of every image of some shards, or of a folder of images, to an ``.npz`` file.

    The file has the arrays `features` (float32 ``[n, d]``) and `ids` (text ``[n]``); of shards also `labels` (int64
    ``[n]``), `splits` (text ``[n]``) and `classes` (text). Images are viewed as in an evaluation. Those of a folder
    that cannot be read are named and left out. The file appears when it is complete. What an interrupted call computed
    is in a folder beside it, with which the same call continues.

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
        upright: turn images as their EXIF orientation says. Weights of a run that saw upright images imply it.

    Raises:
        UserError: weights, recipe or images are missing or do not fit each other, or the file cannot be written, or is
            part of a run or one of the inputs (`launcher.runs.output_file`).
    """
    destination, place = local_path(destination), place_of(data)
    if destination.suffix != ".npz":
        raise UserError(f"features are an .npz file, and {destination} does not end in that: name it {destination}.npz")
    check_output(destination, (".npz",), (Path(origin), place) if isinstance(place, Path) else (Path(origin),))
    recipe, weights, title = _recipe_and_weights(origin, recipe_name, ema, step, modules)
    recipe = recipe.variant(data={"classes": None, "path": data}, model={"train": "all"})
    if upright:
        recipe = recipe.variant(input={"upright": True})
    # Without `manifest.json` a folder has no shards.
    is_folder = isinstance(place, Path) and place.is_dir() and not (place / MANIFEST).exists()
    images = find_images(place) if is_folder else None
    shards = open_shards(recipe) if images is None else None
    model = build(recipe, len(shards.classes) if shards else 1)
    fit_weights(model, weights, origin)  # of the backbone: a head for other classes stays out
    accelerator = make_accelerator(recipe)
    say(f"features of the {title}{UPRIGHT_NOTE if recipe.input.upright else ''}")
    source = _Shards(shards, recipe) if shards else _Files(images or [], recipe)
    parts = destination.with_name(destination.name + _PARTS_ENDING)
    _begin_parts(parts, _key(recipe, model.state_dict(), source.identity))
    with FeatureExtractor(model.to(accelerator.device), recipe, accelerator) as extractor:
        arrays = source.arrays(parts, extractor, default_workers() if workers is None else workers)
    try:
        with replacing(destination) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        raise UserError(f"{destination} cannot be written ({error.strerror}): choose another file") from None
    shutil.rmtree(parts, ignore_errors=True)
    count, values = arrays["features"].shape
    return count, values, len(images) - count if images else 0


def _begin_parts(parts: Path, key: str) -> None:
    """Make the folder of parts, or keep it if it holds parts with the same key.

    Raises:
        UserError: it cannot be made.
    """
    file = parts / "key"
    if file.is_file() and file.read_text() == key:
        return
    shutil.rmtree(parts, ignore_errors=True)
    try:
        parts.mkdir(parents=True, exist_ok=True)
        write_atomically(file, key.encode())
    except OSError as error:
        raise UserError(f"{parts} cannot be written ({error.strerror}): choose another file") from None


def _key(recipe: Recipe, weights: dict[str, Tensor], images: Sequence[object]) -> str:
    """Return a digest of all that decides the features: view, weights and images."""
    found = hashlib.sha256(repr((recipe.identity(), recipe.engine.precision, *images)).encode())
    for name, tensor in weights.items():
        found.update(name.encode())
        found.update(tensor.numpy().tobytes())
    return found.hexdigest()


class _Shards:
    """The images of shards, split by split."""

    def __init__(self, shards: ShardSet, recipe: Recipe):
        self.shards, self.recipe = shards, recipe
        self.splits = {name: split for name, split in shards.splits.items() if len(split)}
        self.identity = [shards.digest]

    def arrays(self, parts: Path, extractor: FeatureExtractor, workers: int) -> dict[str, Any]:
        """Return the arrays of the file."""
        features = []
        for name, split in self.splits.items():
            batches = EvalBatches(split, self.recipe, 0, len(split), BATCH)
            store, what = FeatureStore(parts / name, len(split)), f"features of {name}"
            features.append(_filled(store, batches, extractor.evaluation_rows, what, workers)["features"])
        return {
            "features": np.concatenate(features),
            "labels": np.concatenate([np.asarray(split.labels, np.int64) for split in self.splits.values()]),
            "ids": np.array(
                [split.sample_name(number) for split in self.splits.values() for number in range(len(split))]
            ),
            "splits": np.repeat(list(self.splits), [len(split) for split in self.splits.values()]),
            "classes": np.array(self.shards.classes),
        }


class _Files:
    """Image files."""

    def __init__(self, images: list[Path], recipe: Recipe):
        self.images, self.recipe = images, recipe
        found = [image.lstat() for image in images]
        self.identity = [(str(path), one.st_size, one.st_mtime_ns) for path, one in zip(images, found)]

    def arrays(self, parts: Path, extractor: FeatureExtractor, workers: int) -> dict[str, Any]:
        """Return the arrays of the file, without images that cannot be read, which are named.

        Raises:
            UserError: none of the images can be read.
        """
        reasons: dict[int, str] = {}

        def rows(batch: tuple[range, Tensor, dict[int, str]]) -> np.ndarray:
            chunk, pixels, errors = batch
            reasons.update(errors)
            numbers = np.array([UNREADABLE if number in errors else number for number in chunk])
            size = self.recipe.input.evaluated_size
            shown = torch.zeros(len(chunk), 3, size, size, dtype=torch.uint8)
            if len(pixels):
                shown[torch.from_numpy(numbers >= 0)] = pixels
            return feature_rows(extractor(shown), numbers)

        batches = ImageBatches(self.images, self.recipe, BATCH)
        found = _filled(FeatureStore(parts / "images", len(self.images)), batches, rows, "features", workers)
        readable = found["image"] != UNREADABLE
        for number in np.flatnonzero(~readable).tolist():
            reason = f" ({reasons[number]})" if number in reasons else ""
            say(f"unreadable: {printable(str(self.images[number]))}{reason}")
        if not readable.any():
            raise UserError("none of the images can be read, so there are no features: see the reasons above")
        return {
            "features": found["features"][readable],
            "ids": np.array(
                [printable(str(image)) for image, is_readable in zip(self.images, readable) if is_readable]
            ),
        }


def _filled(
    store: FeatureStore, batches: Any, rows: Callable[[Any], np.ndarray], what: str, workers: int
) -> np.ndarray:
    """Compute the missing parts of a store, with progress; return all of its rows."""
    missing = store.missing()
    done_before = store.count - sum(map(store.images_of, missing))
    if done_before:
        say(f"{what}: {done_before:,} of {store.count:,} images were computed before")
    fill_parts(store, missing, batches, rows, what, workers)
    return store.all_rows()


def _recipe_and_weights(
    origin: str, recipe_name: str | None, ema: bool, step: int | None, modules: Sequence[str]
) -> tuple[Recipe, dict[str, Tensor], str]:
    """Return recipe and weights of what `origin` names, and a title for them."""
    if not local_path(origin).exists() and timm.is_model(origin):
        pretrained = timm_pretrained(origin, say)
        return _timm_recipe(origin), pretrained, f"pretrained weights of {origin}"
    recipe, weights = open_weights(local_path(origin), recipe_name, ema, step, modules)
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
