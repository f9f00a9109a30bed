"""`bigbatch predict`: predicts classes and probabilities of images with the weights of a run or of a file."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from data.on_device import DevicePreprocessor
from data.printable_text import printable
from data.progress import progress, say
from launcher.engines.base import make_accelerator
from launcher.evaluation.accuracy import evaluated_logits
from launcher.evaluation.image_files import BATCH_SIZE, UPRIGHT_NOTE, find_images, load_images
from launcher.evaluation.saved_weights import SavedWeights, open_weights
from models.build import build
from models.weights import fit_weights
from recipes.errors import UserError
from recipes.local_paths import local_path
from recipes.schema import Recipe

_TOP = 5


@dataclass(frozen=True)
class Prediction:
    """The prediction for one image: the likeliest classes with their probabilities, or why it could not be read."""

    image: Path
    likeliest: tuple[tuple[str, float], ...] = ()
    error: str | None = None

    def to_dict(self) -> dict[str, object]:
        """Return it as `--json` prints it. The name of the image is written as in the output without `--json`."""
        image = printable(str(self.image))
        if self.error is not None:
            return {"image": image, "error": self.error}
        (label, probability), *_ = self.likeliest
        others = [{"class": name, "probability": round(share, 6)} for name, share in self.likeliest]
        return {"image": image, "class": label, "probability": round(probability, 6), "likeliest": others}


def predict(
    origin: str | Path,
    places: str | Path | Sequence[str | Path],
    recipe_name: str | None = None,
    ema: bool = True,
    workers: int | None = None,
    step: int | None = None,
    modules: Sequence[str] = (),
    upright: bool = False,
) -> list[Prediction]:
    """Return a prediction for every image, in the order of `places`; images in a folder are sorted by name.

    The images go through the same checks as in `bigbatch shard` and the same transform as in an evaluation. A line on
    standard error names the weights that are used.

    Args:
        origin: a run directory, a checkpoint in one, or a weights file.
        places: images and folders of them.
        recipe_name: the recipe of a weights file that does not name one.
        ema: use a run's EMA weights if it has them.
        workers: processes that read images; None: what the CPUs allow, or 0 for few images.
        step: of the run's checkpoint; None: the newest.
        modules: the user's modules that a weights file may import, as `recipe_of` says.
        upright: turn images as their EXIF orientation says, as `bigbatch shard --upright` does. Weights of a run that
            saw upright images imply it.

    Raises:
        UserError: weights or recipe are missing or do not fit each other, or there are no images.
    """
    origin, images = local_path(origin), find_images(places)
    recipe, weights = open_weights(origin, recipe_name, ema, step, modules)
    classes = _class_names(origin, recipe, weights)
    model = build(recipe, len(classes))
    fit_weights(model, weights.tensors, str(origin), new_head=False)
    say(f"predicts with the {weights.title}{UPRIGHT_NOTE if upright or recipe.input.upright else ''}")
    accelerator = make_accelerator(recipe)
    model = model.to(accelerator.device).eval()
    preprocessor = DevicePreprocessor(recipe, accelerator.device)
    found: list[Prediction] = []
    showing = progress("predict", len(images), "images", shown=len(images) > BATCH_SIZE)
    with showing as done, torch.inference_mode(), accelerator.autocast():
        for chunk, pixels, errors in load_images(images, recipe, workers, upright):
            logits = pixels  # empty where no image of the batch can be read
            if len(pixels):
                logits = evaluated_logits(model, preprocessor.normalised(pixels.to(accelerator.device)), recipe)
            likeliest = _likeliest(logits, classes)
            for number in chunk:
                error = errors.get(number)
                one = Prediction(images[number], error=error) if error else Prediction(images[number], next(likeliest))
                found.append(one)
            done(len(found))
    return found


def _class_names(origin: Path, recipe: Recipe, weights: SavedWeights) -> list[str]:
    """Return the names of the classes, or their numbers if the weights have no names."""
    if weights.classes is not None:
        return weights.classes
    if recipe.data.classes is None:
        raise UserError(
            f"neither {origin} nor recipe {recipe.name} says how many classes there are: "
            f"give a file from `bigbatch export`"
        )
    return [str(number) for number in range(recipe.data.classes)]


def _likeliest(logits: Tensor, classes: list[str]) -> Iterator[tuple[tuple[str, float], ...]]:
    """Yield the names and probabilities of the likeliest classes of each image; nothing without logits."""
    if not len(logits):
        return
    best = logits.softmax(dim=1).topk(min(_TOP, len(classes)))
    for shares, numbers in zip(best.values.tolist(), best.indices.tolist()):
        yield tuple((classes[number], share) for number, share in zip(numbers, shares))
