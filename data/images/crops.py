"""The crop of a training image. Its draws are those of timm or torchvision, from the global generators."""

from collections.abc import Callable

import numpy as np
import torch
from timm.data.transforms import RandomResizedCropAndInterpolation
from torch import Tensor
from torchvision.transforms import RandomCrop

from data.images.decode import Crop, EncodedImage
from data.images.evaluation_view import EvalTransform
from recipes.schema import Recipe


class ResizedCrop:
    """A random rectangle, resized to the input size: timm's crop. Only what the rectangle needs is decoded."""

    def __init__(self, recipe: Recipe):
        self.settings, self.augment = recipe.input, recipe.augment

    def __call__(self, image: EncodedImage) -> Tensor:
        """Return uint8 ``[3, size, size]``, channels last in memory."""
        drawn = RandomResizedCropAndInterpolation.get_params(
            _size_only(image.height, image.width), self.augment.crop_scale, self.augment.crop_ratio
        )
        return image.crop_resized(Crop(*drawn), self.settings.size, self.settings.interpolation)


class PaddedCrop:
    """A random square of the padded image: torchvision's `RandomCrop`, after `Resize` of the shorter side.

    The resize changes nothing on images that have the input size already, such as CIFAR's at 32 pixels.
    """

    def __init__(self, recipe: Recipe):
        self.settings, self.augment = recipe.input, recipe.augment

    def __call__(self, image: EncodedImage) -> Tensor:
        """Return uint8 ``[3, size, size]``, channels last in memory."""
        size, pad = self.settings.size, self.augment.pad
        pixels = image.resized(size, self.settings.interpolation).permute(1, 2, 0).numpy()
        padded = np.pad(pixels, ((pad, pad), (pad, pad), (0, 0)), mode=self.augment.pad_mode)
        top, left, _, _ = RandomCrop.get_params(_size_only(*padded.shape[:2]), (size, size))
        square = np.ascontiguousarray(padded[top : top + size, left : left + size])
        return torch.from_numpy(square).permute(2, 0, 1)


class CenterCrop:
    """What an evaluation at `input.size` sees. It draws nothing."""

    def __init__(self, recipe: Recipe):
        self.view = EvalTransform(recipe.variant(input={"eval_size": None, "eval_interpolation": None}))

    def __call__(self, image: EncodedImage) -> Tensor:
        """Return uint8 ``[3, size, size]``."""
        return self.view(image.data)


# The crop of each value of `augment.crop`.
CROPS: dict[str, Callable[[Recipe], Callable[[EncodedImage], Tensor]]] = {
    "random_resized": ResizedCrop,
    "pad": PaddedCrop,
    "center": CenterCrop,
}


def _size_only(height: int, width: int) -> Tensor:
    """Return an empty tensor of an image's height and width, which is all that is read when a crop is drawn."""
    return torch.empty(0, height, width)
