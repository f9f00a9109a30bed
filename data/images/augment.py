"""What happens to one photograph: timm's transforms, with every choice decided by the sample's key.

timm draws from the global generators of Python, NumPy and torch. They are seeded with the sample's key just before its
transform runs, so what they draw is a function of (seed, epoch, sample) however many numbers an operation takes.
Training draws timm's crop from the image's size alone and decodes what it needs (`data.images.decode`); evaluation is timm's
transform as it is. Normalisation, erasing and mixing happen later, on the device (`data.on_device`).
"""

import math
import random

import numpy as np
import torch
from timm.data import create_transform
from timm.data.auto_augment import RandAugment
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import Compose, RandomHorizontalFlip

from data.images.decode import Crop, EncodedImage, decode
from data.images.randaugment import on_arrays
from data.images.randaugment_pillow import PillowOperation
from recipes.randomness import random_key
from recipes.schema import Recipe

ERASED_AREA = (0.02, 1 / 3)  # share of the image; timm's defaults, as upstream
ERASED_ASPECT = (0.3, 1 / 0.3)
NO_BOX = (0, 0, 0, 0)


def timms_train_transform(recipe: Recipe) -> Compose:
    """timm's own transform from a Pillow image to an array of uint8, without erasing."""
    chosen = recipe.augment
    return create_transform(
        recipe.input.size,
        is_training=True,
        use_prefetcher=True,  # uint8 out: the device normalises
        scale=chosen.crop_scale,
        ratio=chosen.crop_ratio,
        hflip=chosen.flip,
        color_jitter=chosen.color_jitter,
        auto_augment=chosen.randaugment,
        interpolation=recipe.input.interpolation,
        mean=recipe.input.mean,
        std=recipe.input.std,
        re_prob=0.0,
    )


class TrainTransform:
    """Crop, flip, RandAugment or colour jitter of one training image, and the box that is to be erased."""

    def __init__(self, recipe: Recipe):
        self.recipe = recipe
        self.crop, *changes, _to_array = timms_train_transform(recipe).transforms
        assert isinstance(self.crop, RandomResizedCropAndInterpolation)
        flips = bool(changes) and isinstance(changes[0], RandomHorizontalFlip)
        self.flip = changes.pop(0) if flips else None
        changes = [
            on_arrays(change) if isinstance(change, RandAugment) else PillowOperation(change) for change in changes
        ]
        self.on_array = Compose(changes) if changes else None  # RandAugment, colour jitter

    def __call__(self, image: bytes, epoch: int, sample: int) -> tuple[Tensor, tuple[int, int, int, int]]:
        """Return uint8 ``[3, size, size]``, channels last in memory, and the box to erase.

        The box is top, left, height, width in pixels, zeros for none.
        """
        encoded = EncodedImage(image)
        seed_generators(random_key(self.recipe.seed, "augment", epoch, sample))
        crop = Crop(*self.crop.get_params(_of_size(encoded), self.crop.scale, self.crop.ratio))
        pixels = encoded.crop_resized(crop, self.recipe.input.size, self.recipe.input.interpolation)
        if self.flip and torch.rand(1) < self.flip.p:
            pixels = pixels.flip(2)
        if self.on_array:
            pixels = torch.from_numpy(self.on_array(pixels.permute(1, 2, 0).numpy())).permute(2, 0, 1)
        box = NO_BOX
        if random.random() < self.recipe.augment.erasing:
            box = _box(self.recipe.input.size)
        return pixels, box


class EvalTransform:
    """The one deterministic view in which an image is evaluated: resized and centre-cropped; warped at 384 and above."""

    def __init__(self, recipe: Recipe):
        warp = recipe.input.size >= 384
        self.transform = create_transform(
            recipe.input.size,
            is_training=False,
            use_prefetcher=True,
            interpolation=recipe.input.interpolation,
            crop_pct=1.0 if warp else recipe.input.eval_crop,
            crop_mode="squash" if warp else "center",
        )

    def __call__(self, image: bytes) -> Tensor:
        """Return uint8 ``[3, size, size]``."""
        return self.transform(decode(image))


def seed_generators(number: int) -> None:
    """Seed the global generators of Python, NumPy and torch's CPU with one key."""
    random.seed(number)
    np.random.seed(number & 0xFFFFFFFF)
    torch.default_generator.manual_seed(number)


def _of_size(image: EncodedImage) -> Tensor:
    """Something without pixels that has the size of an image, which is all that timm looks at to draw a crop."""
    return torch.empty(0, image.height, image.width)


def _box(size: int) -> tuple[int, int, int, int]:
    """A rectangle of random area and aspect, where timm's RandomErasing would put one; none if ten tries do not fit."""
    for _ in range(10):
        area = random.uniform(*ERASED_AREA) * size * size
        aspect = math.exp(random.uniform(*map(math.log, ERASED_ASPECT)))
        height, width = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if height < size and width < size:
            return random.randint(0, size - height), random.randint(0, size - width), height, width
    return NO_BOX
