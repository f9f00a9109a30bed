"""`bigbatch predict`: the class and probability of photographs, by a run's weights or those of a file."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.image_formats import IMAGE_ENDINGS
from data.images.augment import EvalTransform
from data.images.inspection import Unreadable, inspect
from data.loader import load_in_order
from data.on_device import DevicePreprocessor
from data.progress import progress
from data.sources.files import FolderFiles
from launcher.engines.base import make_accelerator
from launcher.evaluation.saved_weights import classes_of, recipe_of, run_weights
from launcher.runs.run_directory import RunDirectory
from launcher.workers import default_workers
from models.build import build
from models.weights import fit_weights, read_weights
from recipes.errors import UserError
from recipes.schema import Recipe

_BATCH_SIZE = 32
_TOP = 5


@dataclass(frozen=True)
class Prediction:
    """What one photograph shows: the likeliest classes with their probabilities, or why it could not be read."""

    image: Path
    likeliest: tuple[tuple[str, float], ...] = ()
    error: str | None = None

    def to_dict(self) -> dict:
        """As `--json` prints it."""
        if self.error is not None:
            return {"image": str(self.image), "error": self.error}
        (label, probability), *_ = self.likeliest
        others = [{"class": name, "probability": round(share, 6)} for name, share in self.likeliest]
        return {"image": str(self.image), "class": label, "probability": round(probability, 6), "likeliest": others}


def predict(
    origin: Path, places: list[Path], recipe_name: str | None, averaged: bool, workers: int | None
) -> list[Prediction]:
    """Return a prediction for every photograph, in order; folders are searched, theirs come in order of their names.

    The photographs pass through the same checks as in `bigbatch shard` and the same view as in an evaluation.

    Args:
        origin: a run directory or a weights file.
        places: photographs and folders of them.
        averaged: take a run's averaged weights (EMA) if it has them.
        workers: processes that read photographs; None: as many as pay.

    Raises:
        UserError: weights or recipe are missing or do not fit each other, or there are no photographs.
    """
    images = _images(places)
    recipe, classes, weights = _trained(origin, recipe_name, averaged)
    model = build(recipe, len(classes))
    fit_weights(model, weights, str(origin), new_head=False)
    accelerator = make_accelerator(recipe)
    model = model.to(accelerator.device).eval()
    preprocessor = DevicePreprocessor(recipe, accelerator.device)
    if workers is None:
        workers = default_workers() if len(images) > 2 * _BATCH_SIZE else 0
    found: list[Prediction] = []
    dataset = _Photographs(images, recipe)
    batches = load_in_order(dataset, range(len(dataset)), workers)
    with progress("predict", len(images), "photographs", shown=len(images) > _BATCH_SIZE) as done:
        with torch.inference_mode(), accelerator.autocast():
            for chunk, pixels, errors in batches:
                logits = (
                    model(preprocessor.normalised(pixels.to(accelerator.device))).float() if len(pixels) else pixels
                )
                guesses = iter(_likeliest(logits, classes))
                for number in chunk:
                    error = errors.get(number)
                    found.append(
                        Prediction(images[number], error=error) if error else Prediction(images[number], next(guesses))
                    )
                done(len(found))
    return found


def _trained(origin: Path, recipe_name: str | None, averaged: bool) -> tuple[Recipe, list[str], dict[str, Tensor]]:
    """The recipe, the names of the classes and the weights of a run or of a file."""
    if origin.is_dir():
        run = RunDirectory(origin)
        return run.recipe(), run.facts()["dataset"]["classes"], run_weights(run, averaged)
    weights = read_weights(origin)
    recipe = recipe_of(origin, recipe_name, [])
    classes = classes_of(origin)
    if classes is None and recipe.data.classes is None:
        raise UserError(
            f"neither {origin} nor recipe {recipe.name} says how many classes there are: give a file from `bigbatch export`"
        )
    return recipe, classes or [str(number) for number in range(recipe.data.classes)], weights


def _images(places: list[Path]) -> list[Path]:
    found: list[Path] = []
    for place in places:
        if place.is_dir():
            names = [name for name in FolderFiles(place).names if name.lower().endswith(IMAGE_ENDINGS)]
            if not names:
                raise UserError(f"{place} holds no images ({', '.join(IMAGE_ENDINGS[:4])}, …): check the path")
            found += [place / name for name in names]
        elif place.exists():
            found.append(place)
        else:
            raise UserError(f"there is no {place}: give photographs or a folder of them")
    return found


class _Photographs:
    """Batches of photographs: their numbers, uint8 pixels ``[n, 3, size, size]`` of the readable ones, why others are not."""

    def __init__(self, images: list[Path], recipe: Recipe):
        self.images = images
        self.transform = EvalTransform(recipe)
        self.item_bytes = _BATCH_SIZE * 3 * recipe.input.size**2

    def __len__(self) -> int:
        return -(-len(self.images) // _BATCH_SIZE)

    def __getitem__(self, batch: int) -> tuple[range, Tensor, dict[int, str]]:
        chunk = range(batch * _BATCH_SIZE, min((batch + 1) * _BATCH_SIZE, len(self.images)))
        pixels, errors = [], {}
        for number in chunk:
            try:
                pixels.append(self.transform(inspect(self.images[number].read_bytes()).data))
            except Unreadable as unreadable:
                errors[number] = unreadable.reason
            except (
                Exception
            ) as error:  # whatever a file system or a decoder raises: one photograph never stops the rest
                errors[number] = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        return chunk, torch.stack(pixels) if pixels else torch.empty(0), errors


def _likeliest(logits: Tensor, classes: list[str]) -> Iterator[tuple[tuple[str, float], ...]]:
    if not len(logits):
        return
    best = logits.softmax(dim=1).topk(min(_TOP, len(classes)))
    for shares, numbers in zip(best.values.tolist(), best.indices.tolist()):
        yield tuple((classes[number], share) for number, share in zip(numbers, shares))
