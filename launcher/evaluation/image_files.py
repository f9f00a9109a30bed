"""Image files that the user names: finds them, and loads them as an evaluation views images."""

from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from data.image_formats import IMAGE_ENDINGS
from data.images.evaluation_view import EvalTransform
from data.images.inspection import Unreadable, inspect
from data.images.pillow_warnings import named_warnings
from data.images.size_limit import SizeLimit
from data.loader import load_in_order
from data.printable_text import printable
from data.sources.files import FolderFiles
from launcher.workers import default_workers
from recipes.errors import UserError
from recipes.local_paths import local_path
from recipes.schema import Recipe

BATCH_SIZE = 32
UPRIGHT_NOTE = ", on images turned as their EXIF orientation says"
_BOMB = "decompression-bomb"  # what `inspect` calls an image above Pillow's limit
_OVERSAMPLING = 4  # of an image above that limit: the pixels that are kept, per pixel of the view, on each side


def find_images(places: str | Path | Sequence[str | Path]) -> list[Path]:
    """Return images and the images of folders, in the order of `places`; those of a folder are sorted by name.

    Raises:
        UserError: a place does not exist, or is a folder without images.
    """
    found: list[Path] = []
    for place in map(local_path, [places] if isinstance(places, str | Path) else places):
        if place.is_dir():
            names = [name for name in FolderFiles(place).names if name.lower().endswith(IMAGE_ENDINGS)]
            if not names:
                raise UserError(f"{place} holds no images ({', '.join(IMAGE_ENDINGS[:4])}, …): check the path")
            found += [place / name for name in names]
        elif place.exists() and not place.is_file():  # reading a FIFO would wait for a writer for ever
            raise UserError(f"{place} is neither an image nor a folder of images")
        elif place.exists():
            found.append(place)
        else:
            raise UserError(f"there is no file or folder {place}: give images or a folder of them")
    return found


def load_images(
    images: list[Path], recipe: Recipe, workers: int | None, upright: bool = False
) -> Iterator[tuple[range, Tensor, dict[int, str]]]:
    """Yield batches of images in order, after the checks of `bigbatch shard` and the transform of an evaluation.

    A batch is the numbers of its images, the uint8 pixels ``[n, 3, size, size]`` of those that can be read, and the
    reason by number for each of the others.

    Args:
        images: the files.
        recipe: how images are viewed.
        workers: processes that read images; None: what the CPUs allow, or 0 for few images.
        upright: as `inspect` takes it.
    """
    if workers is None:
        workers = default_workers() if len(images) > 2 * BATCH_SIZE else 0
    batches = ImageBatches(images, recipe, BATCH_SIZE, upright)
    yield from load_in_order(batches, range(len(batches)), workers)


class ImageBatches:
    """The batches that `load_images` yields, by number."""

    def __init__(self, images: list[Path], recipe: Recipe, batch_size: int, upright: bool = False):
        self.images, self.batch_size, self.upright = images, batch_size, upright
        self.transform = EvalTransform(recipe)
        self.huge_limit = SizeLimit(shortest_side=_OVERSAMPLING * recipe.input.evaluated_size)
        self.item_bytes = batch_size * 3 * recipe.input.evaluated_size**2

    def __len__(self) -> int:
        return -(-len(self.images) // self.batch_size)

    def __getitem__(self, batch: int) -> tuple[range, Tensor, dict[int, str]]:
        chunk = range(batch * self.batch_size, min((batch + 1) * self.batch_size, len(self.images)))
        pixels: list[Tensor] = []
        errors: dict[int, str] = {}
        for number in chunk:
            try:
                with named_warnings(partial(printable, str(self.images[number]))):
                    pixels.append(self.transform(self._checked(self.images[number].read_bytes())))
            except Unreadable as unreadable:
                advice = ": make it smaller first" if _BOMB in unreadable.odd else ""
                errors[number] = unreadable.reason + advice
            except Exception as error:  # whatever a file system or a decoder raises: one image never stops the rest
                errors[number] = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
        return chunk, torch.stack(pixels) if pixels else torch.empty(0), errors

    def _checked(self, data: bytes) -> bytes:
        """Return an image in the form in which `bigbatch shard` stores it.

        A JPEG above Pillow's limit of pixels is made smaller, as under a size limit of `bigbatch shard`.

        Raises:
            Unreadable: it cannot be decoded.
        """
        try:
            return inspect(data, upright=self.upright).data
        except Unreadable as unreadable:
            if _BOMB not in unreadable.odd:
                raise
        return inspect(data, self.huge_limit, self.upright).data
