"""The largest image worth storing: what is larger is made smaller and encoded again, what is not stays as it is."""

import io
from dataclasses import dataclass

from PIL import Image

from recipes.errors import UserError


@dataclass(frozen=True)
class SizeLimit:
    """Pixels that a side may have, and the JPEG quality of what has to be encoded again.

    Where both sides have a limit, both hold.

    Raises:
        UserError: a limit or the quality is not possible.
    """

    shortest_side: int | None = None
    longest_side: int | None = None
    quality: int = 95

    def __post_init__(self):
        for name, side in (("shortest", self.shortest_side), ("longest", self.longest_side)):
            if side is not None and side < 1:
                raise UserError(f"a limit of {side} pixels for the {name} side is not possible: give e.g. 256")
        if not 1 <= self.quality <= 100:
            raise UserError(f"a JPEG quality of {self.quality} is not possible: give one from 1 to 100, e.g. 95")

    def allowed(self, width: int, height: int) -> tuple[int, int] | None:
        """Return the size in pixels to which such an image has to shrink; None where it is small enough."""
        scale = min(
            (self.shortest_side or width + height) / min(width, height),
            (self.longest_side or width + height) / max(width, height),
        )
        if scale >= 1:
            return None
        return max(1, round(width * scale)), max(1, round(height * scale))


def shrink(image: Image.Image, size: tuple[int, int], quality: int) -> bytes:
    """Return an opened, not yet loaded, image as a JPEG of that size in pixels; grey stays grey, the rest is RGB."""
    image.draft(None, (2 * size[0], 2 * size[1]))  # at twice the size, Lanczos still sees what it needs
    image.load()
    image = image.convert("L" if image.mode in ("L", "LA", "1") else "RGB")
    stored = io.BytesIO()
    image.resize(size, Image.Resampling.LANCZOS).save(stored, "JPEG", quality=quality)
    return stored.getvalue()
