"""Small real image files for the tests of data."""

import hashlib
import io
from pathlib import Path

import numpy as np
from PIL import Image


def encoded(
    name: str, file_format: str = "JPEG", size: tuple[int, int] = (40, 30), mode: str = "RGB", **options
) -> bytes:
    """Return an image file whose pixels depend on `name` alone."""
    seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
    pixels = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), np.uint8)
    image = Image.fromarray(pixels).resize(size, Image.Resampling.BICUBIC).convert(mode)
    stored = io.BytesIO()
    image.save(stored, file_format, **options)
    return stored.getvalue()


def write_tree(root: Path, classes=("ant", "bee", "cow"), each: int = 10) -> Path:
    """Write a class-per-folder tree of small JPEGs."""
    for name in classes:
        (root / name).mkdir(parents=True)
        for number in range(each):
            (root / name / f"{name}.{number}.jpg").write_bytes(encoded(f"{name}{number}"))
    return root


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a data set by name."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
