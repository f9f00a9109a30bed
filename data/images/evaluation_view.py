"""How an evaluation views an image: timm's transform, unchanged. Nothing in it is random."""

from PIL import Image
from timm.data import create_transform
from torch import Tensor

from data.images.decode import decode
from recipes.schema import Recipe

_LONGEST = 100  # times its shorter side; a longer image is evaluated by its middle
WARP_FROM = 384  # pixels: ConvNeXt evaluates without a centre crop from this size on


class EvalTransform:
    """The deterministic view for evaluation: resized and centre-cropped, or warped to a square from 384 pixels on."""

    def __init__(self, recipe: Recipe):
        size = recipe.input.evaluated_size
        warp = size >= WARP_FROM
        self.transform = create_transform(
            size,
            is_training=False,
            use_prefetcher=True,
            interpolation=recipe.input.evaluated_interpolation,
            crop_pct=1.0 if warp else recipe.input.eval_crop,
            crop_mode="squash" if warp else "center",
        )

        self.crops, self.upright = not warp, recipe.input.upright

    def __call__(self, image: bytes) -> Tensor:
        """Return uint8 ``[3, size, size]``."""
        decoded = decode(image, self.upright)
        pixels: Tensor = self.transform(_middle_of_strip(decoded) if self.crops else decoded)
        return pixels


def _middle_of_strip(image: Image.Image) -> Image.Image:
    """Return the middle of an image that is more than `_LONGEST` times longer than wide; others are returned as is.

    timm resizes the whole image before it crops the centre. From a strip of 1 x 6000 pixels it would make one of
    256 x 1,536,000, which takes gigabytes.
    """
    width, height = image.size
    short, long = sorted(image.size)
    if long <= _LONGEST * short:
        return image
    start = (long - _LONGEST * short) // 2
    end = long - start
    return image.crop((start, 0, end, height) if width == long else (0, start, width, end))
