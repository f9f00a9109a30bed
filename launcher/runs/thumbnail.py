"""Small pictures of images for pages."""

import base64
import io

from PIL import Image

from data.images.decode import decode

_SIZE = 128  # longer side in pixels


def thumbnail(image: bytes, upright: bool) -> str:
    """Return a small JPEG of an encoded image, in base64, turned as its EXIF orientation says if `upright`."""
    small = decode(image, upright)
    small.thumbnail((_SIZE, _SIZE), Image.Resampling.BICUBIC)
    stored = io.BytesIO()
    small.save(stored, "JPEG", quality=85)
    return base64.b64encode(stored.getvalue()).decode()
