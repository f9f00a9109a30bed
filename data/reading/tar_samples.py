"""The samples of a WebDataset tar in order: consecutive members whose names are equal up to the first dot."""

import tarfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from data import image_formats
from data.reading.tar_members import tar_members

LABEL_ENDINGS = ("cls", "json", "txt")
IMAGE_ENDINGS = (*(ending.removeprefix(".") for ending in image_formats.IMAGE_ENDINGS), "img", "image")


@dataclass
class TarSample:
    """One sample: where its image lies in the tar, and the contents of its label members.

    Attributes:
        key: name of its members up to the first dot.
        image: name of the image's member; empty where there is none.
        offset, size: bytes of the image inside the tar.
        labels: contents of the members whose ending is one of `LABEL_ENDINGS`, by ending.
    """

    key: str
    image: str = ""
    offset: int = 0
    size: int = 0
    labels: dict[str, bytes] = field(default_factory=dict)


def tar_samples(path: Path) -> Iterator[TarSample]:
    """Yield the samples of a tar; reads headers and labels, not images.

    Raises:
        tarfile.TarError: the tar is damaged or ends too early.
    """
    sample = None
    for member, contents in _files(path):
        folder, slash, base = member.name.rpartition("/")
        stem, _, ending = base.partition(".")
        key, ending = folder + slash + stem, ending.lower()
        if sample is None or key != sample.key:
            if sample is not None:
                yield sample
            sample = TarSample(key)
        if ending in LABEL_ENDINGS:
            sample.labels[ending] = contents.read()
        elif ending in IMAGE_ENDINGS:
            sample.image, sample.offset, sample.size = member.name, member.offset_data, member.size
    if sample is not None:
        yield sample


def _files(path: Path) -> Iterator[tuple[tarfile.TarInfo, IO[bytes]]]:
    with tarfile.open(path, "r:") as tar:
        for member in tar_members(tar):
            contents = tar.extractfile(member) if member.isreg() else None
            if contents is not None:
                yield member, contents
