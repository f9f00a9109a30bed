"""Recognises images that annotate other images, such as the masks of a segmentation data set: these are no classes."""

import re
from collections import defaultdict
from collections.abc import Sequence
from itertools import combinations

from data.sources.splits import split_of_name
from recipes.errors import UserError

_IMAGE_FOLDERS = {"images", "image", "img", "imgs", "jpegimages", "photos", "rgb"}
_ANNOTATION_FOLDERS = {"annotations", "annotation", "masks", "mask", "labels", "label", "trimaps", "segmentation"} | {
    *("segmentations", "groundtruth", "gt", "depth", "seg", "bboxes", "annots")
}
_FOLDERS_OF_PAIRS = 4  # with more folders, these are classes
_MASK = re.compile(r"(.+?)[ _.-](?:masks?|gt|groundtruth|segmentation|seg)(?:[ _.-]?\d+)?", re.IGNORECASE)


def masks_of_images(paths: Sequence[str]) -> list[int]:
    """Return the numbers of the paths that are named like the mask of another image.

    These are ``cat/1_mask.png`` beside ``cat/1.png``, and ``cat/masks/1.png`` where there is ``cat/images/1.png``.
    """
    beside, in_image_folders = set(), set()
    for path in paths:
        folder, name, stem = _parts(path)
        beside.add((folder, name, stem))
        if name.lower() in _IMAGE_FOLDERS:
            in_image_folders.add((folder, stem))
    found = []
    for number, path in enumerate(paths):
        folder, name, stem = _parts(path)
        mask = _MASK.fullmatch(stem)
        # Folders at the top or directly below a split would be the classes: `refuse_annotation_folders` decides there.
        inside_class = folder and split_of_name(folder.rpartition("/")[2]) is None
        in_folder = name.lower() in _ANNOTATION_FOLDERS and inside_class and (folder, stem) in in_image_folders
        if in_folder or (mask and (folder, name, mask[1]) in beside):
            found.append(number)
    return found


def refuse_annotation_folders(folders: Sequence[str], place: str) -> None:
    """Raise a `UserError` if folders that would be classes are named like images and their annotations."""
    names = {folder.lower() for folder in folders}
    annotations = any(_words(folder) & _ANNOTATION_FOLDERS for folder in folders)
    if (annotations and names & _IMAGE_FOLDERS) or (names and names <= _ANNOTATION_FOLDERS):
        raise _annotated(place, ", ".join(folders[:4]) + (", …" if len(folders) > 4 else ""))


def refuse_pairs(files: Sequence[tuple[str, str]], place: str) -> None:
    """Raise a `UserError` if two folders hold the same names in different formats, such as photos and their masks.

    `files` are pairs of the folder that would be a class, and the path of an image inside.
    """
    stems: dict[str, set[str]] = defaultdict(set)
    endings: dict[str, set[str]] = defaultdict(set)
    for folder, inside in files:
        stem, _, ending = inside.rpartition(".")
        stems[folder].add(stem)
        endings[folder].add(ending.lower())
    if not 2 <= len(stems) <= _FOLDERS_OF_PAIRS:
        return
    for one, other in combinations(sorted(stems), 2):
        if len(stems[one]) > 1 and stems[one] == stems[other] and not endings[one] & endings[other]:
            raise _annotated(place, f"{one} and {other} with files of the same names in different formats")


def _parts(path: str) -> tuple[str, str, str]:
    """Return the folders above the folder of an image, the name of that folder, and the image's name without ending."""
    above, _, file = path.rpartition("/")
    folder, _, name = above.rpartition("/")
    return folder, name, file.rpartition(".")[0]


def _words(folder: str) -> set[str]:
    """Return the words of a name such as ``SegmentationClass`` or ``gt_masks``, in lower case."""
    return set(re.findall("[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", folder).lower()))


def _annotated(place: str, listed: str) -> UserError:
    return UserError(
        f"{place} has the folders {listed}, which look like images beside their annotations and not like classes: "
        f"sort the images into one folder per class, or give a table of their labels with --labels"
    )
