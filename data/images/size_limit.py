"""The size limit of `bigbatch shard`: larger images are resized and encoded again."""

from dataclasses import dataclass

from PIL import Image

from recipes.errors import UserError


@dataclass(frozen=True)
class SizeLimit:
    """Limits for the sides of an image, and the JPEG quality for images that have to be encoded again.

    Attributes:
        shortest_side: pixels; None: no limit. An image must keep to both limits.
        longest_side: pixels; None: no limit.
        quality: from 1 to 100.

    Raises:
        UserError: a limit or the quality is out of range.
    """

    shortest_side: int | None = None
    longest_side: int | None = None
    quality: int = 95

    def __post_init__(self) -> None:
        for name, side in (("shortest", self.shortest_side), ("longest", self.longest_side)):
            if side is not None and side < 1:
                raise UserError(f"a limit of {side} pixels for the {name} side is not valid: give e.g. 256")
        if not 1 <= self.quality <= 100:
            raise UserError(f"a JPEG quality of {self.quality} is not valid: give one from 1 to 100, e.g. 95")

    def allowed(self, width: int, height: int) -> tuple[int, int] | None:
        """Return the width and height to shrink such an image to; None if it is within the limit."""
        scale = min(
            (self.shortest_side or width + height) / min(width, height),
            (self.longest_side or width + height) / max(width, height),
        )
        if scale >= 1:
            return None
        return max(1, round(width * scale)), max(1, round(height * scale))


def shrunk(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    """Return the image at another size, grey if it was grey and else RGB.

    Args:
        image: a JPEG opened but not yet loaded, so that it can be decoded at a smaller scale, or any other image.
        size: width and height in pixels.
    """
    # A draft of at least twice the size decodes faster and leaves the Lanczos filter enough pixels.
    image.draft(None, (2 * size[0], 2 * size[1]))
    image.load()
    image = image.convert("L" if image.mode in ("L", "LA", "1") else "RGB")
    return image.resize(size, Image.Resampling.LANCZOS)
