"""Recognises images that annotate other images, such as the masks of a segmentation data set: these are no classes."""

import re
from collections.abc import Sequence
from itertools import pairwise

from data.sources.splits import split_of_name

# The name of a folder of images, or a word in it.
IMAGE_WORDS = {"images", "image", "img", "imgs", "jpegimages", "photos", "rgb"}
# Words for annotations that hardly occur in the name of a class.
ANNOTATION_WORDS = {"annotations", "annotation", "annots", "masks", "trimap", "trimaps", "segmentation"} | {
    *("segmentations", "groundtruth", "groundtruths", "bboxes", "boundingboxes")
}
# Words that may be classes too, such as masks beside helmets, or a Ford GT.
UNSURE_ANNOTATION_WORDS = {"mask", "label", "labels", "gt", "seg", "depth"}
_ALL_WORDS = ANNOTATION_WORDS | UNSURE_ANNOTATION_WORDS
_MASK = re.compile(r"(.+?)[ _.-](?:masks?|gt|groundtruth|segmentation|seg)(?:[ _.-]?\d+)?", re.IGNORECASE)


def masks_of_images(paths: Sequence[str]) -> list[int]:
    """Return the numbers of the paths that are named like the mask of another image.

    These are ``cat/1_mask.png`` beside ``cat/1.png``, and ``cat/masks/1.png`` where there is ``cat/images/1.png``.
    """
    beside, in_image_folders = set(), set()
    for path in paths:
        folder, name, stem = _parts(path)
        beside.add((folder, name, stem))
        if name.lower() in IMAGE_WORDS:
            in_image_folders.add((folder, stem))
    found = []
    for number, path in enumerate(paths):
        folder, name, stem = _parts(path)
        mask = _MASK.fullmatch(stem)
        # Folders at the top or directly below a split would be the classes: `refuse_annotation_folders` decides there.
        inside_class = folder and split_of_name(folder.rpartition("/")[2]) is None
        in_folder = inside_class and (folder, stem) in in_image_folders and bool(words_of(name) & _ALL_WORDS)
        if in_folder or (mask and (folder, name, mask[1]) in beside):
            found.append(number)
    return found


def words_of(folder: str) -> set[str]:
    """Return the words of a name such as ``SegmentationClass``, in lower case, and neighbours joined: "groundtruth"."""
    spaced = re.sub(r"([a-z])([A-Z])|([A-Z])([A-Z][a-z])", r"\1\3 \2\4", folder)
    words = re.findall("[a-z]+", spaced.lower())
    return {*words, *(one + other for one, other in pairwise(words))}


def _parts(path: str) -> tuple[str, str, str]:
    """Return the folders above the folder of an image, the name of that folder, and the image's name without ending."""
    above, _, file = path.rpartition("/")
    folder, _, name = above.rpartition("/")
    return folder, name, file.rpartition(".")[0]
