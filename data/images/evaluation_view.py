"""How an evaluation views an image: timm's transform, unchanged. Nothing in it is random."""

from PIL import Image
from timm.data import create_transform
from torch import Tensor

from data.images.decode import decode, middle_of_strip
from recipes.schema import Recipe

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
    """Return the middle of a very long image; others are returned as they are. timm would resize the whole strip."""
    width, height = image.size
    kept = middle_of_strip(height, width)
    if (kept.height, kept.width) == (height, width):
        return image
    return image.crop((kept.left, kept.top, kept.left + kept.width, kept.top + kept.height))
