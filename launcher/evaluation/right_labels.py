"""Images with several right labels, such as ImageNet's reassessed labels (ReaL)."""

import re
from importlib import resources
from pathlib import Path

import numpy as np
from timm.data import ImageNetInfo

from data.progress import say
from data.reading.shards import Split
from recipes.errors import UserError
from recipes.local_paths import local_path
from recipes.parsing import parse_json

REAL = "real"  # the option's value for ImageNet's reassessed labels
_REAL_FILE = "imagenet_real_labels.json"  # class numbers by validation image, in timm
_VALIDATION_IMAGE = re.compile(r"ILSVRC2012_val_0*(\d+)")


def right_label_accuracy(guesses: np.ndarray, split: Split, classes: list[str], source: str) -> tuple[float, int]:
    """Return the share of images whose likeliest class is one of their right labels, and the number of those images.

    Images without a right label are left out, as Beyer et al. 2020 do.

    Args:
        guesses: the likeliest class of every image of the split, int ``[n]``.
        split: the images.
        classes: the names of the shards' classes.
        source: "real" for ImageNet's reassessed labels, or a JSON file with a list of class names for each image name.

    Raises:
        UserError: the file cannot be read, or it has labels for none of the images.
    """
    by_name = _real_labels() if source == REAL else _read(local_path(source))
    numbers = {name: number for number, name in enumerate(classes)}
    right, counted = 0, 0
    for sample, guess in enumerate(guesses.tolist()):
        labels = by_name.get(_image_name(split.sample_name(sample), source), [])
        if labels:
            counted += 1
            right += guess in {numbers.get(label) for label in labels}
    if not counted:
        raise UserError(f"{source} has labels for none of the images of split {split.name}: check the images' names")
    if counted < len(guesses):
        say(f"note: {len(guesses) - counted:,} of {len(guesses):,} images have no right label and are left out")
    return right / counted, counted


def _image_name(sample_name: str, source: str) -> str:
    name = sample_name.rpartition(" in ")[0]
    if source == REAL:
        found = _VALIDATION_IMAGE.search(name)
        return found[1] if found else ""
    return name.rpartition("/")[2].partition(".")[0]


def _real_labels() -> dict[str, list[str]]:
    synsets = ImageNetInfo().label_names()
    labels = parse_json((resources.files("timm.data") / "_info" / _REAL_FILE).read_text())
    return {str(number): [synsets[label] for label in some] for number, some in enumerate(labels, start=1)}


def _read(path: Path) -> dict[str, list[str]]:
    try:
        found = parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"the right labels {path} cannot be read ({error}): give a JSON file, or {REAL}") from None
    if not isinstance(found, dict) or not all(isinstance(labels, list) for labels in found.values()):
        raise UserError(f'the right labels {path} are not of the form {{"image": ["class"]}}: correct the file')
    return {Path(name).name.partition(".")[0]: labels for name, labels in found.items()}
