"""Which folders of a tree are splits and which are classes, for the layouts that people use."""

import json
from pathlib import Path

import numpy as np
import pytest

from data.image_formats import FORMATS
from data.sources.recognition import open_source
from data.sources.splits import split_of_name
from data.writing.sharding import shard
from recipes.errors import UserError
from tests.data.pictures import encoded, write_tree
from tests.data.sources.test_sources import labelled

CLASSES = ("glioma", "meningioma", "pituitary")


def write(root: Path, *paths: str, file_format: str = "JPEG") -> Path:
    """Write one image per path."""
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(encoded(path, file_format))
    return root


def counts(source) -> dict[str, int]:
    splits = [split for split, _ in labelled(source).values()]
    return {name: splits.count(name) for name in ("train", "val", "test") if name in splits}


@pytest.mark.parametrize(
    ("folders", "expected"),
    [
        (("Training", "Testing"), {"train": 9, "val": 3, "test": 12}),
        (("seg_train/seg_train", "seg_test/seg_test"), {"train": 9, "val": 3, "test": 12}),
        (("train/train", "val/val"), {"train": 12, "val": 12}),
        (("train/images", "valid/images", "test/images"), {"train": 12, "val": 12, "test": 12}),
        (("data/set/train", "data/set/dev"), {"train": 12, "val": 12}),
        (("training_set/training_set", "test_set/test_set"), {"train": 9, "val": 3, "test": 12}),
        (("TrainImages", "ValImages"), {"train": 12, "val": 12}),
        (("val", "test"), {"val": 12, "test": 12}),
    ],
)
def test_split_folders_under_the_names_that_people_use(tmp_path, folders, expected):
    for folder in folders:
        write_tree(tmp_path / "tree" / folder, CLASSES, each=4)
    found = open_source(str(tmp_path / "tree"), 0.25)
    assert found.listing.classes == list(CLASSES)
    assert counts(found) == expected


def test_splits_inside_of_class_folders(tmp_path):
    for name in CLASSES:
        write_tree(tmp_path / "tree" / name, ("train", "val", "test"), each=2)
    found = open_source(str(tmp_path / "tree"), 0.1)
    assert found.listing.classes == list(CLASSES) and counts(found) == {"train": 6, "val": 6, "test": 6}


@pytest.mark.parametrize(("fraction", "expected"), [(0, {"train": 12}), (1, {"val": 12})])
def test_a_validation_fraction_of_0_means_none_and_of_1_all(tmp_path, fraction, expected):
    write_tree(tmp_path / "tree", CLASSES, each=4)
    assert counts(open_source(str(tmp_path / "tree"), fraction)) == expected


def test_a_test_split_is_never_the_validation_split(tmp_path):
    """The best weights are chosen by validation accuracy, so the test split must not be it."""
    for split in ("train", "test"):
        write_tree(tmp_path / "tree" / split, CLASSES, each=4)
    found = open_source(str(tmp_path / "tree"), 0.25)
    assert {name.split("/")[0] for name, (split, _) in labelled(found).items() if split == "val"} == {"train"}
    assert "3 training images are the validation split" in found.listing.notes[0]
    assert counts(open_source(str(tmp_path / "tree"), 0)) == {"train": 12, "test": 12}


def test_an_unlabelled_test_set_that_is_nested_twice_is_left_out_and_counted(tmp_path):
    write_tree(tmp_path / "tree/train/train", CLASSES, each=4)
    write(tmp_path / "tree", *(f"test/test/{number}.jpg" for number in range(5)))
    found = open_source(str(tmp_path / "tree"), 0.25)
    assert found.listing.classes == list(CLASSES) and counts(found) == {"train": 9, "val": 3}
    assert "left out 5 images of test, which holds them outside of class folders" in found.listing.notes


def test_a_single_class_in_a_split_is_not_unwrapped(tmp_path):
    write_tree(tmp_path / "tree/train", CLASSES, each=2)
    write(tmp_path / "tree", "val/glioma/scans/1.jpg", "val/glioma/scans/2.jpg")
    assert labelled(open_source(str(tmp_path / "tree"), 0.1))["val/glioma/scans/1.jpg"] == ("val", "glioma")


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (
            [f"fold{fold}/{name}/{i}.jpg" for fold in (1, 2) for name in CLASSES for i in range(2)],
            "not clear which",
        ),
        (
            [f"fold{fold}/{part}/{name}/1.jpg" for fold in (1, 2) for part in ("train", "val") for name in CLASSES],
            "folders fold1, fold2, with subfolders such as glioma, .* not clear which",
        ),
        ([f"HAM_images_part_{part}/{i}.jpg" for part in (1, 2) for i in range(3)], "numbered like parts of one data"),
        ([f"images_{part:03d}/images/{part}.jpg" for part in range(1, 4)], "numbered like parts of one data set"),
        (
            [f"train/{i}.jpg" for i in range(3)] + [f"val/{i}.jpg" for i in range(3)],
            "look like splits but hold no",
        ),
        (["images/pug_1.jpg", "annotations/trimaps/pug_1.jpg"], "images beside their annotations"),
        (["train/a/1.jpg", "train/b/1.jpg", "extra/1.jpg"], "not clear which"),
    ],
)
def test_a_tree_that_can_be_read_in_two_ways_is_refused(tmp_path, paths, message):
    with pytest.raises(UserError, match=message) as error:
        open_source(str(write(tmp_path / "tree", *paths)), 0.1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("other", ["val", "test"])
@pytest.mark.parametrize("spelt", ["{}_{}", "{1}"])
def test_splits_without_a_common_class_are_refused(tmp_path, other, spelt):
    """E.g. train/train_cat beside val/val_cat, or train/Cat beside val/cat: nothing that is tested would be learned."""
    names = {"train": ("Cat", "Dog"), other: ("cat", "dog")}
    for split, classes in names.items():
        for name in classes:
            write(tmp_path / "tree", *(f"{split}/{spelt.format(split, name)}/{i}.jpg" for i in range(3)))
    with pytest.raises(UserError, match=f"the {other} split of .* has none of the classes of its training split"):
        open_source(str(tmp_path / "tree"), 0)
    class_map = tmp_path / "map.json"
    class_map.write_text(
        json.dumps({spelt.format(split, name): name.lower() for split, of_it in names.items() for name in of_it})
    )
    assert open_source(str(tmp_path / "tree"), 0, class_map).listing.classes == ["cat", "dog"]


def test_numbered_folders_may_be_classes(tmp_path):
    write(tmp_path / "tree", *(f"c{number}/{i}.jpg" for number in range(3) for i in range(2)))
    assert open_source(str(tmp_path / "tree"), 0).listing.classes == ["c0", "c1", "c2"]
    parts = write(tmp_path / "parts", *(f"part{number}/{i}.jpg" for number in range(3) for i in range(2)))
    (tmp_path / "map.txt").write_text("part0 bolt\npart1 nut\npart2 gear\n")
    assert open_source(str(parts), 0, tmp_path / "map.txt").listing.classes == ["bolt", "nut", "gear"]


def test_folders_inside_of_classes_are_said_to_be_no_classes(tmp_path):
    paths = [f"{folder}/{i}.jpg" for folder in ("animals/cat", "animals/dog", "plants/oak", "plants/ash") for i in "01"]
    found = open_source(str(write(tmp_path / "tree", *paths)), 0)
    assert found.listing.classes == ["animals", "plants"]
    assert found.notes == ["the 4 folders inside the classes, such as animals/cat, are no classes"]


def test_a_class_map_says_which_folders_are_classes(tmp_path):
    paths = [f"{name}/{year}/{i}.jpg" for name in ("oak", "elm") for year in (2019, 2020) for i in range(2)]
    write(tmp_path / "tree", *paths)
    with pytest.raises(UserError, match="--class-map"):
        open_source(str(tmp_path / "tree"), 0.25)
    (tmp_path / "map.txt").write_text("oak oak\nelm elm\n")
    assert open_source(str(tmp_path / "tree"), 0.25, tmp_path / "map.txt").listing.classes == ["elm", "oak"]


def test_classes_may_be_called_train_or_share_one_subfolder(tmp_path):
    write(tmp_path / "vehicles", *(f"{name}/{i}.jpg" for name in ("train", "car", "bus") for i in range(4)))
    assert open_source(str(tmp_path / "vehicles"), 0.25).listing.classes == ["bus", "car", "train"]
    write(tmp_path / "tiny", *(f"{name}/images/{i}.jpg" for name in ("n01", "n02") for i in range(4)))
    assert open_source(str(tmp_path / "tiny"), 0.25).listing.classes == ["n01", "n02"]


def test_one_name_in_two_unicode_forms_is_one_class(tmp_path):
    write(tmp_path / "tree", "train/caf\u00e9/1.jpg", "train/bar/1.jpg", "val/cafe\u0301/1.jpg", "val/bar/1.jpg")
    found = open_source(str(tmp_path / "tree"), 0.1)
    assert found.listing.classes == ["bar", "caf\u00e9"] and len(found.listing) == 4
    assert "two Unicode forms" in found.listing.notes[0]


def test_what_is_ignored_is_counted_by_ending(tmp_path):
    write_tree(tmp_path / "tree", CLASSES, each=2)
    for name in ("glioma/a.txt", "glioma/b.TXT", "pituitary/noending", "pituitary/x.heic"):
        (tmp_path / "tree" / name).write_bytes(b"x")
    (tmp_path / "tree/schwannoma").mkdir()
    notes = open_source(str(tmp_path / "tree"), 0.5).listing.notes
    if "HEIF" in FORMATS:
        assert notes[0] == "ignored 3 files that are not images by their ending: 2 .txt, 1 without an ending"
    else:
        assert notes[0] == "ignored 4 files that are not images by their ending: 2 .txt, 1 without an ending, 1 .heic"
        assert "the .heic files are images" in notes[1] and "pillow-heif" in notes[1]
    assert notes[-1] == "1 folder is empty: schwannoma"


def test_a_class_whose_files_are_all_ignored_is_an_error(tmp_path):
    write_tree(tmp_path / "tree", ("cat", "dog"), each=2)
    (tmp_path / "tree/fox").mkdir()
    (tmp_path / "tree/fox/1.psd").write_bytes(b"x")
    with pytest.raises(UserError, match="folder fox .* would be a class without images, because it holds only .psd"):
        open_source(str(tmp_path / "tree"), 0.5)


@pytest.mark.parametrize(
    ("ending", "file_format"), [("jfif", "JPEG"), ("JPE", "JPEG"), ("avif", "AVIF"), ("jp2", "JPEG2000")]
)
def test_every_ending_of_a_format_that_is_read_is_an_image(tmp_path, ending, file_format):
    if file_format not in FORMATS:
        pytest.skip(f"this Pillow does not read {file_format}")
    write(tmp_path / "tree", *(f"{name}/{i}.{ending}" for name in "ab" for i in range(3)), file_format=file_format)
    found = shard(str(tmp_path / "tree"), tmp_path / "out", val_fraction=0, progress=False)
    assert len(found.split("train")) == 6
    stored = {"JPEG": ".jpg", "AVIF": ".avif", "JPEG2000": ".jp2"}[file_format]
    assert all(stored in found.split("train").sample_name(i) for i in range(6))


def test_a_class_in_one_split_only_and_a_class_of_few_images_are_said(tmp_path, capsys):
    for split, names in (("train", "ab"), ("val", "abd"), ("test", "a")):
        write(tmp_path / "tree", *(f"{split}/{name}/{i}.jpg" for name in names for i in range(6 if name == "a" else 3)))
    (tmp_path / "tree/train/c").mkdir()
    shard(str(tmp_path / "tree"), tmp_path / "out")
    printed = capsys.readouterr().err
    assert "3 classes, recognised as class folders" in printed
    assert "images per class (train+val+test): a 6+6+6, b 3+3+0, d 0+3+0" in printed
    assert "1 class (d) without training images, which the model cannot learn" in printed
    assert "1 class (b) with fewer than 5 training images" in printed
    assert "1 class (b) without images in the test split" in printed
    assert "1 folder is empty: train/c" in printed
    assert list(json.loads((tmp_path / "out/manifest.json").read_text())["splits"]) == ["train", "val", "test"]


@pytest.mark.parametrize(
    ("name", "split"),
    [("train", 0), ("Training", 0), ("seg_train", 0), ("train2017", 0), ("valImages", 1), ("dev", 1), ("test-set", 2)]
    + [("train_val", None), ("trains", None), ("contest", None), ("evaluate", None), ("cat", None)],
)
def test_which_split_a_name_tells(name, split):
    assert split_of_name(name) == split


def test_a_test_split_is_read_back_and_verified(tmp_path):
    from data.writing.verify import verify

    for split in ("train", "val", "test"):
        write_tree(tmp_path / "tree" / split, CLASSES, each=2)
    found = shard(str(tmp_path / "tree"), tmp_path / "out", progress=False)
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 6, "val": 6, "test": 6}
    assert verify(tmp_path / "out", progress=False) == []
    assert np.bincount(found.split("test").labels).tolist() == [2, 2, 2]
