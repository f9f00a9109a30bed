"""Masks and other annotations are neither classes nor images to train on."""

import re

import pytest

from data.sources.annotations import masks_of_images
from data.sources.recognition import open_source
from recipes.errors import UserError
from tests.data.sources.test_class_trees import write


@pytest.mark.parametrize(
    ("photos", "others", "ending"),
    [
        ("JPEGImages", "SegmentationClass", "png"),
        ("images", "gt_masks", "jpg"),
        ("Original", "Ground Truth", "jpg"),
        ("leftImg8bit", "gtFine", "png"),
        ("CXR_png", "ManualMask", "jpg"),
    ],
)
def test_photos_beside_their_masks_are_not_two_classes(tmp_path, photos, others, ending):
    write(tmp_path / "tree", *(f"{photos}/{i}.jpg" for i in range(3)), *(f"{others}/{i}.{ending}" for i in range(3)))
    with pytest.raises(UserError, match="look like images beside their annotations and not like classes"):
        open_source(str(tmp_path / "tree"), 0)


def test_masks_may_be_what_is_classified(tmp_path):
    """As in data sets of faces with and without a mask."""
    write(tmp_path / "tree", *(f"{name}_mask/{i}.jpg" for name in ("with", "without") for i in range(3)))
    assert open_source(str(tmp_path / "tree"), 0).listing.classes == ["with_mask", "without_mask"]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (
            [f"{part}/{kind}/{i}.png" for part in ("train", "val") for kind in ("images", "masks") for i in "01"],
            "masks",
        ),
        (
            [f"{kind}/{part}/{i}.png" for part in ("train", "val") for kind in ("image", "gt") for i in "01"],
            "gt, image",
        ),
    ],
)
def test_photos_beside_their_masks_are_not_two_classes_of_each_split(tmp_path, paths, message):
    with pytest.raises(UserError, match=f"{message}.* look like images beside their annotations"):
        open_source(str(write(tmp_path / "tree", *paths)), 0)


@pytest.mark.parametrize(
    ("image", "mask"),
    [
        ("{0}/{0} ({1}).png", "{0}/{0} ({1})_mask.png"),
        ("{0}/images/{1}.png", "{0}/images/{1}-GT.jpg"),
        ("{0}/images/{1}.png", "{0}/masks/{1}.png"),
    ],
)
def test_masks_in_class_folders_are_left_out_and_counted(tmp_path, image, mask):
    """As in data sets of ultrasound and X-ray images: benign (1)_mask.png, or COVID/masks/1.png."""
    for name in ("benign", "normal"):
        write(tmp_path / "tree", *(path.format(name, i) for path in (image, mask) for i in range(3)))
    found = open_source(str(tmp_path / "tree"), 0)
    assert len(found.listing) == 6 and not {"mask", "masks", "GT"} & set(
        re.findall("[A-Za-z]+", " ".join(found.listing.names))
    )
    assert "left out 6 images that are named as masks of other images, e.g. benign/" in found.notes[0]


def test_an_image_whose_name_speaks_of_a_mask_stays():
    """Without an image that it is the mask of."""
    assert masks_of_images(["dance/carnival_mask.jpg", "dance/carnival.txt.jpg", "other/carnival.jpg"]) == []
    assert masks_of_images(["a/1.jpg", "a/1_mask.jpg", "a/1-mask_2.png", "a/1_seg.png", "a/unmask.jpg"]) == [1, 2, 3]
