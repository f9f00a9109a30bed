"""RandAugment's fast shears and translations give timm's pixels within rounding."""

import zipfile

import numpy as np
import pytest
from PIL import Image
from timm.data import auto_augment

from data.images import randaugment_geometry as geometry
from data.images.decode import decode

OPTIONS = {"fillcolor": (124, 116, 104), "resample": Image.Resampling.BICUBIC}
AMOUNTS = (0.27, -0.27, 0.3, -0.405, 0.45, 0.0, 0.003, -1 / 3, 1.3)  # what magnitude 9 draws, the ends, and beyond
BOTH = pytest.mark.parametrize(
    "theirs, ours",
    [
        pytest.param(auto_augment.shear_x, geometry.shear_x, id="shear x"),
        pytest.param(auto_augment.shear_y, geometry.shear_y, id="shear y"),
        pytest.param(auto_augment.translate_x_rel, geometry.translate_x, id="translate x"),
        pytest.param(auto_augment.translate_y_rel, geometry.translate_y, id="translate y"),
    ],
)


def difference(theirs, ours, image: np.ndarray) -> np.ndarray:
    """Absolute difference of every value, of 255, for all amounts."""
    pairs = [
        (ours(image, amount, **OPTIONS), np.asarray(theirs(Image.fromarray(image), amount, **OPTIONS)))
        for amount in AMOUNTS
    ]
    assert all(a.dtype == b.dtype and a.shape == b.shape for a, b in pairs)
    return np.stack([abs(a.astype(int) - b) for a, b in pairs])


@BOTH
def test_images_are_moved_as_by_timm_within_one_of_255(dogs_vs_cats_zip, theirs, ours):
    with zipfile.ZipFile(dogs_vs_cats_zip) as archive:
        names = [name for name in archive.namelist() if name.endswith(".jpg")][::200]
        images = [np.array(decode(archive.read(name)).resize((224, 224))) for name in names]
    found = np.stack([difference(theirs, ours, image) for image in images])
    assert found.max() <= 1 and found.mean() < 0.003


@BOTH
@pytest.mark.parametrize("size", [(64, 64), (61, 33), (33, 61), (3, 5), (1, 1)], ids=str)
def test_the_hardest_pixels_are_moved_as_by_timm_too(theirs, ours, size):
    """Black and white noise, where the interpolation overshoots most, with every offset to the edges."""
    noise = np.random.default_rng(0).integers(0, 2, (size[1], size[0], 3), dtype=np.uint8) * 255
    found = difference(theirs, ours, noise)
    assert found.max() <= 1 and found.mean() < 0.02


@BOTH
def test_with_another_interpolation_it_is_timms(theirs, ours):
    noise = np.random.default_rng(0).integers(0, 256, (40, 30, 3), dtype=np.uint8)
    options = OPTIONS | {"resample": Image.Resampling.BILINEAR}
    assert np.array_equal(ours(noise, 0.27, **options), theirs(Image.fromarray(noise), 0.27, **options))


def test_sums_are_exact_in_single_precision():
    """So neither the order of additions nor fused ones change a bit."""
    weights = geometry._weights(np.linspace(0, 1, 100_001)).astype(np.float64)
    assert np.array_equal(weights * 2**14, np.rint(weights * 2**14))
    assert (weights.sum(axis=1) == 1).all()
    assert abs(weights).sum(axis=1).max() * 255 * 2**14 < 2**24
