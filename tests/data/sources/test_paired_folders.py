"""Two folders of the same pictures are not two classes; two classes whose files have the same names are."""

import json
from pathlib import Path

import pytest

from data.image_formats import FORMATS
from data.sources.recognition import open_source
from data.writing.sharding import shard
from recipes.errors import UserError
from tests.data.pictures import encoded
from tests.data.sources.test_class_trees import write


def write_masks(root: Path, *paths: str, mode: str = "L", file_format: str = "PNG") -> Path:
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(encoded(path, file_format, mode=mode))
    return root


@pytest.mark.parametrize(
    ("ending", "file_format"), [("jpg", "JPEG"), ("png", "PNG"), ("jfif", "JPEG"), ("webp", "WEBP"), ("gif", "GIF")]
)
@pytest.mark.parametrize("above", ["", "train/"])
def test_classes_whose_files_are_numbered_alike_are_classes_in_any_format(tmp_path, ending, file_format, above):
    tree = write(
        tmp_path / "tree", *(f"{above}cat/{i}.jpg" for i in range(6)), *(f"val/cat/{i}.jpg" for i in "ab" if above)
    )
    write(tree, *(f"{above}dog/{i}.{ending}" for i in range(6)), file_format=file_format)
    found = open_source(str(tree), 0)
    assert found.listing.classes == ["cat", "dog"] and not any("same names" in note for note in found.notes)


def test_every_ending_that_is_read_is_an_image_and_what_is_not_is_counted(tmp_path):
    """Of three classes with the same file names, one in .jfif; and images in rarer formats among them."""
    tree = write(tmp_path / "tree", *(f"{path}/{i}.jpg" for path in ("cat", "dog") for i in range(4)), "cat/a.JPE")
    write(tree, *(f"fox/{i}.jfif" for i in range(4)), "cat/noending")
    (tree / "cat/a.heic").write_bytes(b"\0\0\0\x18ftypheic")
    rare = [f for f in ("AVIF",) if f in FORMATS]
    write(tree, *(f"cat/{name}" for name in ("a.avif", "avif_inside.jpg") if rare), file_format=(rare or ["JPEG"])[0])
    found = shard(str(tree), tmp_path / "out", val_fraction=0, workers=1, progress=False)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["classes"] == ["cat", "dog", "fox"] and len(found.split("train")) == 13 + 2 * len(rare)
    assert manifest["splits"]["train"]["per_class"][1:] == [4, 4]
    assert [entry["name"] for entry in manifest["skipped"]] == (["cat/a.heic"] if "HEIF" in FORMATS else [])
    assert any("1 without an ending" in note for note in open_source(str(tree), 0).notes)


@pytest.mark.parametrize(
    ("photos", "others"),
    [
        (
            [f"leftImg8bit/{part}/aachen/{part}_{i}_leftImg8bit.png" for part in ("train", "val") for i in range(6)],
            [
                f"gtFine/{part}/aachen/{part}_{i}_gtFine_{kind}.png"
                for part in ("train", "val")
                for i in range(6)
                for kind in ("color", "labelIds")
            ],
        ),
        ([f"Original/{i}.png" for i in range(6)], [f"GT/{i}.png" for i in range(6)]),
        (
            [f"CXR_png/{i}.png" for i in range(6)],
            [f"ManualMask/{side}/{i}_mask.png" for side in "lr" for i in range(6)],
        ),
        (
            [f"images/{i:03d}.bird/{i}_{k}.png" for i in range(6) for k in range(2)],
            [f"segmentations/{i:03d}.bird/{i}_{k}.png" for i in range(6) for k in range(2)],
        ),
        ([f"scans/{i}.png" for i in (3, 50)], [f"labels/{i}.png" for i in (3, 50)]),
        ([f"set/photo/p{i}.png" for i in (2, 17, 40)], [f"set/outline/p{i}.png" for i in (2, 17, 40)]),
    ],
)
def test_masks_are_no_class_under_any_name(tmp_path, photos, others):
    write(tmp_path / "tree", *photos, file_format="PNG")
    with pytest.raises(UserError, match="images beside their annotations and not like classes.* --class-map"):
        open_source(str(write_masks(tmp_path / "tree", *others)), 0)


def test_masks_of_numbered_photos_are_known_by_their_format(tmp_path):
    """Where the names of the folders say nothing, as well as those of the files."""
    write(tmp_path / "tree", *(f"x/{i}.jpg" for i in range(6)))
    with pytest.raises(UserError, match="x and y with files of the same names, .* beside their annotations"):
        open_source(str(write_masks(tmp_path / "tree", *(f"y/{i}.png" for i in range(6)), mode="P")), 0)


@pytest.mark.parametrize("grey", ["JPEG", None])
def test_grey_images_may_be_a_class(tmp_path, grey):
    """E.g. photographs and X-rays, each numbered from 0; or two classes of digits."""
    write_masks(tmp_path / "tree", *(f"xray/{i}.jpg" for i in range(6)), file_format="JPEG")
    other = "RGB" if grey else "L"
    write_masks(tmp_path / "tree", *(f"photo/{i}.jpg" for i in range(6)), mode=other, file_format="JPEG")
    assert open_source(str(tmp_path / "tree"), 0).listing.classes == ["photo", "xray"]


@pytest.mark.parametrize(
    ("one", "other"),
    [("HR", "LR"), ("raw", "processed"), ("color", "depth"), ("before", "after"), ("DIV2K_HR", "DIV2K_LR")]
    + [("input", "target"), ("train/rgb", "train/thermal"), ("trainA", "trainB")],
)
def test_two_versions_of_the_same_images_are_not_two_classes_unless_a_class_map_says_so(tmp_path, one, other):
    tree = write(tmp_path / "tree", *(f"{folder}/{i}.jpg" for folder in (one, other) for i in range(6)))
    if "/" in one:
        write(tree, *(f"{folder.replace('train', 'val')}/{i}.jpg" for folder in (one, other) for i in "xy"))
    message = "images beside (other versions of them|their annotations)" if one != "trainA" else "look like splits"
    with pytest.raises(UserError, match=message):
        open_source(str(tree), 0)
    names = [folder.rpartition("/")[2] for folder in (one, other)]
    (tmp_path / "map.json").write_text(json.dumps({name: name for name in names}))
    assert sorted(open_source(str(tree), 0, tmp_path / "map.json").listing.classes) == sorted(names)


@pytest.mark.parametrize(
    "paths",
    [
        [*(f"raw/{i}.jpg" for i in range(6)), *(f"processed/{i}.jpg" for i in range(10, 16))],
        [*(f"mask/m{i}.jpg" for i in range(6)), *(f"helmet/h{i}.jpg" for i in range(6))],
        [*(f"{name}/{i}.jpg" for name in ("mask", "no_mask", "mask_worn_wrongly") for i in range(6))],
        [*(f"{name}/{i}.jpg" for name in ("Mask", "NonMask") for i in range(6))],
        [*(f"{name}/{i}.jpg" for name in ("A", "B") for i in range(6))],
        [*(f"{name}/{i}.jpg" for name in ("ford gt", "audi tt", "depth", "seg", "labels") for i in range(6))],
    ],
)
def test_words_of_annotations_and_versions_may_name_classes(tmp_path, paths):
    found = open_source(str(write(tmp_path / "tree", *paths)), 0)
    assert found.listing.classes == sorted({path.partition("/")[0] for path in paths}) and not found.notes


def test_equal_names_that_no_counter_explains_are_said(tmp_path):
    """As in data sets of real and forged pictures, which are two classes."""
    write(tmp_path / "tree", *(f"{name}/face_{i}.jpg" for name in ("real", "forged") for i in (17, 230, 912)))
    [note] = open_source(str(tmp_path / "tree"), 0).notes
    assert note.startswith("the folders forged and real with files of the same names are classes here")
