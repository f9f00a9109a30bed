"""The transforms of one image: timm's, with every random choice decided by the sample's key.

timm draws from the global generators of Python, NumPy and torch. They are seeded with the sample's key right before its
transform runs. The draws are then a function of (seed, epoch, sample), no matter how many numbers the transforms of
earlier images drew.

Training draws timm's crop from the size of the image alone and decodes only what the crop needs (`data.images.decode`).
Evaluation has a view of its own (`data.images.evaluation_view`). Normalisation, erasing and mixing come later, on the
device (`data.on_device`).
"""

import math
import random
from collections.abc import Callable

import numpy as np
import torch
from timm.data import create_transform
from timm.data.auto_augment import RandAugment
from torch import Tensor
from torchvision.transforms import Compose, InterpolationMode, RandomHorizontalFlip, TrivialAugmentWide

from data.images.crops import CROPS
from data.images.decode import EncodedImage
from data.images.randaugment import with_array_operations
from data.images.randaugment_pillow import PillowOperation
from recipes.errors import UserError
from recipes.randomness import KEY_BITS, random_key
from recipes.schema import Recipe
from recipes.user_code import Registry, running

ERASED_AREA = (0.02, 1 / 3)  # share of the image's area; the defaults of timm's RandomErasing, which ConvNeXt uses
ERASED_ASPECT = (0.3, 1 / 0.3)  # height / width; the same source
NO_BOX = (0, 0, 0, 0)

# Takes the pixels of one training image, uint8 [3, size, size], and a generator that is seeded with the image's key.
# Returns the changed pixels, of the same type and shape.
CustomTransform = Callable[[Tensor, torch.Generator], Tensor]
custom_transforms: Registry[CustomTransform] = Registry("transform")

_TIMMS_THREE_AUGMENT = "3a"  # timm's name of the policy
_ERASING_TRIES = 10  # as in timm, which leaves the image whole after ten boxes that do not fit


def timm_train_transform(recipe: Recipe) -> Compose:
    """Return timm's training transform without erasing: from a Pillow image to a uint8 array ``[3, size, size]``."""
    chosen = recipe.augment
    jitter = None if chosen.policy == "trivial" else chosen.color_jitter
    return create_transform(
        recipe.input.size,
        is_training=True,
        use_prefetcher=True,  # makes the output uint8: the device normalises
        scale=chosen.crop_scale,
        ratio=chosen.crop_ratio,
        hflip=chosen.flip,
        color_jitter=jitter,  # type: ignore[arg-type]  # timm takes None for no jitter
        auto_augment=_TIMMS_THREE_AUGMENT if chosen.policy == "three" else chosen.randaugment,
        interpolation=recipe.input.interpolation,
        mean=recipe.input.mean,
        std=recipe.input.std,
        re_prob=0.0,
    )


class TrainTransform:
    """Crop, flip, a policy such as RandAugment or colour jitter of one training image, and the box to erase from it."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.crop = CROPS[recipe.augment.crop](recipe)
        _timms_crop, *changes, _to_array = timm_train_transform(recipe).transforms
        flips = bool(changes) and isinstance(changes[0], RandomHorizontalFlip)
        self.flip = changes.pop(0) if flips else None
        if recipe.augment.policy == "trivial":
            changes = [TrivialAugmentWide(interpolation=InterpolationMode(recipe.input.interpolation))]
        changes = [
            with_array_operations(change) if isinstance(change, RandAugment) else PillowOperation(change)
            for change in changes
        ]
        self.array_transform = Compose(changes) if changes else None  # a policy, colour jitter or both
        name, modules = recipe.code.transform, recipe.code.modules
        self.custom = custom_transforms.get(name, modules) if name is not None else None

    def __call__(
        self, image: bytes, epoch: int, sample: int, copy: int = 0
    ) -> tuple[Tensor, tuple[int, int, int, int]]:
        """Return the pixels and the box to erase.

        Args:
            image: the encoded image.
            epoch: from 0.
            sample: its row in the index of the shards.
            copy: from 0; each copy of an image that is repeated in an epoch is augmented in its own way.

        Returns:
            uint8 ``[3, size, size]``, channels last in memory; and top, left, height, width in pixels, zeros: no box.
        """
        encoded = EncodedImage(image, self.recipe.input.upright)
        view = view_numbers(epoch, sample, copy)
        seed_generators(random_key(self.recipe.seed, "augment", *view))
        # The order of the draws is timm's: crop, flip, policy, jitter, erasing. Another order is another run.
        pixels = self.crop(encoded)
        if self.flip and self._is_mirrored(self.flip.p, epoch, sample, copy):
            pixels = pixels.flip(2)
        if self.array_transform:
            pixels = torch.from_numpy(self.array_transform(pixels.permute(1, 2, 0).numpy())).permute(2, 0, 1)
        box = NO_BOX
        if random.random() < self.recipe.augment.erasing:
            box = _erasing_box(self.recipe.input.size)
        if self.custom:  # last, so that its draws change none of the others
            pixels = self._customised(pixels, random_key(self.recipe.seed, "custom transform", *view))
        return pixels, box

    def _is_mirrored(self, probability: float, epoch: int, sample: int, copy: int) -> bool:
        if self.recipe.augment.flip_mode == "random":
            return bool(torch.rand(1) < probability)
        key = random_key(self.recipe.seed, "flip", *view_numbers(0, sample, copy))
        in_first_epoch: bool = key < probability * 2**KEY_BITS
        return in_first_epoch == (epoch % 2 == 0)

    def _customised(self, pixels: Tensor, key: int) -> Tensor:
        assert self.custom is not None
        name, shape = self.recipe.code.transform, pixels.shape
        with running(f"transform {name}", passes=lambda error: isinstance(error, MemoryError)):
            changed: object = self.custom(pixels, torch.Generator().manual_seed(key))
        if not isinstance(changed, Tensor) or changed.shape != shape or changed.dtype != torch.uint8:
            what = f"{changed.dtype} {list(changed.shape)}" if isinstance(changed, Tensor) else type(changed).__name__
            raise UserError(f"transform {name} of your own code returns {what}: return torch.uint8 {list(shape)}")
        return changed


def is_augmented(recipe: Recipe) -> bool:
    """Return whether an epoch may show a view of an image other than that of the epochs before it."""
    augment, mix = recipe.augment, recipe.mix
    changes = (augment.flip, augment.randaugment, augment.policy, augment.color_jitter, augment.erasing)
    mixes = mix.probability > 0 and (mix.mixup > 0 or mix.cutmix > 0)
    return augment.crop != "center" or any(changes) or mixes or recipe.code.transform is not None


def view_numbers(epoch: int, sample: int, copy: int) -> tuple[int, ...]:
    """Return the numbers of `random_key` that name one view of an image. The first copy has those of an only one."""
    return (epoch, sample, copy) if copy > 0 else (epoch, sample)


def seed_generators(number: int) -> None:
    """Seed the global generators of Python, NumPy and torch's CPU with one key."""
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)  # NumPy takes 32 bits
    torch.default_generator.manual_seed(number)  # torch.manual_seed would also seed the GPUs, which takes longer


def _erasing_box(size: int) -> tuple[int, int, int, int]:
    """Draw a box as timm's RandomErasing does; `NO_BOX` after ten that do not fit into the image."""
    for _ in range(_ERASING_TRIES):
        area = random.uniform(*ERASED_AREA) * size * size
        aspect = math.exp(random.uniform(*map(math.log, ERASED_ASPECT)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height < size and width < size:
            return random.randint(0, size - height), random.randint(0, size - width), height, width
    return NO_BOX
