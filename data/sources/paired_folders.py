"""Recognises folders that hold annotations or other versions of the images of another folder: these are no classes.

Equal names of files alone prove nothing: ``cat/0.jpg`` beside ``dog/0.jpg`` is usual. Another hint has to be there, in
the names of the folders or in the images' headers. `--class-map` is how the user insists that folders are classes.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import permutations

from data.printable_text import first_few, printable
from data.sources.annotations import ANNOTATION_WORDS, IMAGE_WORDS, UNSURE_ANNOTATION_WORDS, words_of
from recipes.errors import UserError

_FOLDERS_OF_PAIRS = 4  # with more folders, these are classes
_NEARLY_ALL = 0.9
_LISTED = 4  # folders in a sentence
_COMPARED = 1000  # names of each folder
_LOOKED_AT = 8  # images of each folder whose headers are read
# Two words of one group name two versions of the same images, if the rest of both names is equal.
_VERSIONS = (
    {"raw", "original", "originals", "processed", "preprocessed", "enhanced", "augmented", "resized", "cropped"},
    {"hr", "lr", "sr"},
    {"rgb", "color", "colour", "depth", "ir", "infrared", "thermal", "nir", "visible"},
    {"before", "after"},
    {"input", "inputs", "output", "outputs", "target", "targets"},
)

# Returns the format of an image and whether it has colours, by its number; None if it cannot be read.
Look = Callable[[int], tuple[str, bool] | None]


def refuse_annotation_folders(folders: Sequence[str], place: str) -> None:
    """Raise a `UserError` if folders that would be classes are named like images and their annotations."""
    names = {folder.lower() for folder in folders}
    sure, unsure = (_of_some(folders, words) for words in (ANNOTATION_WORDS, UNSURE_ANNOTATION_WORDS))
    few = 2 <= len(names) <= _FOLDERS_OF_PAIRS
    images = names & IMAGE_WORDS or (few and any(words_of(folder) & IMAGE_WORDS for folder in folders))
    all_annotations = names and names <= ANNOTATION_WORDS | UNSURE_ANNOTATION_WORDS
    if all_annotations or (images and (sure or unsure)) or (few and sure):
        raise _paired(place, first_few(list(map(printable, folders)), _LISTED), "their annotations")


def require_unpaired(folders: Sequence[str], paths: Sequence[str], look: Look, place: str) -> list[str]:
    """Check that no folder holds annotations or versions of another's images; return notes about equal file names.

    Args:
        folders: that would be the class of each image.
        paths: of the images.
        look: reads the header of an image.
        place: name of the tree in messages.

    Raises:
        UserError: there are such folders.
    """
    names = sorted(set(folders))
    refuse_annotation_folders(names, place)
    if not 2 <= len(names) <= _FOLDERS_OF_PAIRS:
        return []
    images: dict[str, dict[str, int]] = defaultdict(dict)  # of each folder, by file name without ending
    for number, (folder, path) in enumerate(zip(folders, paths)):
        images[folder][path.rpartition("/")[2].rpartition(".")[0]] = number
    unsure = _of_some(names, UNSURE_ANNOTATION_WORDS)
    notes = []
    for one, other in permutations(names, 2):
        if min(len(images[one]), len(images[other])) < 2 or _share(images[other], images[one]) < _NEARLY_ALL:
            continue
        if other in unsure:
            raise _paired(place, f"{printable(one)} and {printable(other)}", "their annotations")
        if _share(images[one], images[other]) < _NEARLY_ALL:
            continue
        both = f"{printable(one)} and {printable(other)} with files of the same names"
        if _are_versions(one, other):
            raise _paired(place, both, "other versions of them")
        counted = _are_counted(images[one])
        if _is_annotation(list(images[one].values()), list(images[other].values()), look, counted):
            raise _paired(place, both, "their annotations")
        if one < other and not counted:
            notes.append(
                f"the folders {both} are classes here: if one holds versions of the other's images, they are not"
            )
    return notes


def _of_some(folders: Sequence[str], words: set[str]) -> set[str]:
    """Return the folders with one of the words in their names, unless that word is in the names of all.

    Masks may be what is classified: ``with_mask`` beside ``without_mask``, or ``mask`` beside ``nomask``.
    """
    return {
        folder
        for folder in folders
        for word in words_of(folder) & words
        if not all(word in re.sub("[^a-z]", "", other.lower()) for other in folders)
    }


def _share(stems: Collection[str], others: Collection[str]) -> float:
    """Return the share of names that are one of the others, or one of them with something added, such as ``_mask``."""
    known = {*others, *_without_common_end(others)}
    compared = list(stems)[:: -(-len(stems) // _COMPARED)]
    return sum(any(part in known for part in _beginnings(stem)) for stem in compared) / len(compared)


def _without_common_end(stems: Collection[str]) -> Collection[str]:
    """Return names without what is added to all of them, such as ``_leftImg8bit``."""
    first, last = min(stem[::-1] for stem in stems), max(stem[::-1] for stem in stems)
    length = next((i for i, (a, b) in enumerate(zip(first, last)) if a != b), min(len(first), len(last)))
    common = first[:length][::-1]
    added = re.search("[ _.-].*", common)
    return {stem.removesuffix(added[0]) for stem in stems} if added else stems


def _beginnings(stem: str) -> Iterator[str]:
    """Yield a name, and the name cut before each separator."""
    yield stem
    for separator in re.finditer("[ _.-]+", stem):
        yield stem[: separator.start()]


def _are_versions(one: str, other: str) -> bool:
    first, second = (re.findall("[a-z]+", re.sub("([a-z])([A-Z])", r"\1 \2", name).lower()) for name in (one, other))
    return any(
        (a := group & set(first)) and (b := group & set(second)) and a != b and {*first} - a == {*second} - b
        for group in _VERSIONS
    )


def _are_counted(stems: dict[str, int]) -> bool:
    """Return whether files are named by a counter, e.g. ``img_1`` to ``img_90``, which is the same in every folder."""
    found = [re.search(r"\d+(?=\D*$)", stem) for stem in stems]
    numbers = {int(number[0]) for number in found if number}
    rests = {stem[: number.start()] for stem, number in zip(stems, found) if number}
    return len(numbers) == len(stems) and len(rests) == 1 and max(numbers) - min(numbers) < len(numbers) / _NEARLY_ALL


def _is_annotation(one: list[int], other: list[int], look: Look, counted: bool) -> bool:
    """Return whether the images of one folder have colours, and those of the other have none, like masks.

    X-rays have none either. So if the names are only those of a counter, the formats have to differ, too.
    """
    found = [
        [seen for number in folder[:: -(-len(folder) // _LOOKED_AT)] if (seen := look(number))]
        for folder in (one, other)
    ]
    if not all(found) or not all(colour for _, colour in found[0]) or any(colour for _, colour in found[1]):
        return False
    formats = [{name for name, _ in seen} for seen in found]
    return not counted or not formats[0] & formats[1]


def _paired(place: str, listed: str, what: str) -> UserError:
    return UserError(
        f"{place} has the folders {listed}, which look like images beside {what} and not like classes: sort the "
        f"images into one folder per class, give a table of their labels with --labels, or, if they are classes, name "
        f"them in a file for --class-map"
    )
