"""The samples of a WebDataset tar in order: consecutive members whose names are equal up to a dot.

WebDataset splits names at the first dot: ``0001.seg.png`` is the member "seg.png" of the sample "0001". Tars with
dots in their keys, ``photo.0001.jpg``, are recognised by their first members, and split at the last dot.
"""

import tarfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import IO

from data import image_formats
from data.reading.tar_members import tar_members

LABEL_ENDINGS = ("cls", "json", "txt")
IMAGE_ENDINGS = (*(ending.removeprefix(".") for ending in image_formats.IMAGE_ENDINGS), "img", "image")
# If a sample has an image of one of these kinds, its images of other kinds are masks or depth maps.
_PHOTO_ENDINGS = ("jpg", "jpeg", "jpe", "jfif", "webp")
_LOOKED_AT = 64  # members from which it is decided where names are split


Opener = Callable[[Path], AbstractContextManager[tarfile.TarFile]]


def _open_plain(path: Path) -> tarfile.TarFile:
    return tarfile.open(path, "r:")


@dataclass
class TarSample:
    """One sample: where its image lies in the tar, and the contents of its label members.

    Attributes:
        key: name of its members up to the dot.
        image: name of the image's member; empty where there is none.
        offset, size: bytes of the image inside the tar.
        labels: contents of the members whose ending is one of `LABEL_ENDINGS`, by ending.
        unused: endings of the other members, further images among them.
    """

    key: str
    image: str = ""
    offset: int = 0
    size: int = 0
    labels: dict[str, bytes] = field(default_factory=dict)
    unused: list[str] = field(default_factory=list)
    _rank: int = len(_PHOTO_ENDINGS) + 2

    def add_image(self, member: tarfile.TarInfo, ending: str) -> None:
        """Use an image as the sample's unless there is a better one: formats of photographs come before others."""
        own = ending.rpartition(".")[2]
        rank = 0 if own in _PHOTO_ENDINGS else 1
        rank += 2 * (own != ending)  # "0001.seg.png" is less likely the image than "0001.png"
        if self.image and rank > self._rank:
            self.unused.append(ending)
            return
        if self.image:
            self.unused.append(self.image.rpartition("/")[2].partition(".")[2].lower())
        self.image, self.offset, self.size, self._rank = member.name, member.offset_data, member.size, rank


def tar_samples(path: Path, open_tar: Opener = _open_plain) -> Iterator[TarSample]:
    """Yield the samples of a tar, reading headers and labels but no images.

    Args:
        path: of the tar.
        open_tar: opens it; that of a compressed tar gives offsets that refer to the unpacked tar.

    Raises:
        tarfile.TarError: the tar is damaged or ends too early.
    """
    sample = None
    last_dot = _has_dotted_keys(path, open_tar)
    for member, contents in _files(path, open_tar):
        key, ending = _split(member.name, last_dot)
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = TarSample(key)
        if ending in LABEL_ENDINGS:
            sample.labels[ending] = contents.read()
        elif ending.rpartition(".")[2] in IMAGE_ENDINGS:
            sample.add_image(member, ending)
        else:
            sample.unused.append(ending)
    if sample is not None:
        yield sample


def _split(name: str, last_dot: bool) -> tuple[str, str]:
    """Return key and ending, the ending in lower case."""
    folder, slash, base = name.rpartition("/")
    if last_dot:
        stem, _, ending = base.rpartition(".")
    else:
        stem, _, ending = base.partition(".")
    return folder + slash + stem, ending.lower()


def _has_dotted_keys(path: Path, open_tar: Opener) -> bool:
    """Return whether no ending is known when names are split at the first dot, but one is when split at the last."""
    names = [member.name for member, _ in islice(_files(path, open_tar), _LOOKED_AT)]
    known = (*LABEL_ENDINGS, *IMAGE_ENDINGS)
    return not any(_split(name, False)[1] in known for name in names) and any(
        _split(name, True)[1] in known for name in names
    )


def _files(path: Path, open_tar: Opener) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    with open_tar(path) as tar:
        for member in tar_members(tar):
            # macOS adds a "._" file with attributes beside each file. It has an image's ending but is not an image.
            if member.name.rpartition("/")[2].startswith("._") or member.name.startswith("__MACOSX/"):
                continue
            contents = tar.extractfile(member) if member.isreg() else None
            if contents is not None:
                yield member, contents
