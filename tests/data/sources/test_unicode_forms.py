"""A name in Unicode's two forms is one name: copying through macOS turns "é" into "e" and an accent."""

import json
import tarfile
import unicodedata
from pathlib import Path

import pytest

from data.sources.recognition import LabelTables, open_source
from data.writing.sharding import shard
from tests.data.pictures import encoded
from tests.data.sources.test_class_trees import write

CAFE, CAFE_NFD = "caf\u00e9", "cafe\u0301"


def labelled_by(tree: Path, rows: dict[str, str]):
    (tree / "labels.csv").write_text("image,label\n" + "".join(f"{image},{label}\n" for image, label in rows.items()))
    return open_source(str(tree), 0, labels=LabelTables((Path("labels.csv"),)))


def test_labels_of_a_table_in_two_forms_are_one_class(tmp_path):
    rows = {f"{i}.jpg": (CAFE, CAFE_NFD, "bar")[i % 3] for i in range(9)}
    found = labelled_by(write(tmp_path / "tree", *rows), rows)
    assert found.listing.classes == ["bar", CAFE]
    assert f"labels of one name in two Unicode forms were merged into one class: {CAFE}" in found.notes


@pytest.mark.parametrize("in_files", ["NFC", "NFD"])
@pytest.mark.parametrize("folder", ["", "prise d'\u00e9t\u00e9/"])
def test_a_table_finds_images_whose_names_are_in_the_other_form(tmp_path, in_files, folder):
    names = [f"{folder}\u00e9{i}.jpg" for i in range(6)]
    other = {"NFC": "NFD", "NFD": "NFC"}[in_files]
    tree = write(tmp_path / "tree", *(unicodedata.normalize(in_files, name) for name in names), "a/b.jpg")
    found = labelled_by(tree, {unicodedata.normalize(other, name): "xy"[i % 2] for i, name in enumerate(names)})
    assert len(found.listing) == 6 and not any("name an image" in note for note in found.notes)


def test_files_that_differ_in_their_form_only_are_told_apart(tmp_path):
    rows = {f"{CAFE}.jpg": "x", f"{CAFE_NFD}.jpg": "y"}
    tree = write(tmp_path / "tree", *rows)
    if len(list(tree.iterdir())) < 2:
        pytest.skip("this file system knows one form only")
    found = labelled_by(tree, rows)
    assert [found.listing.classes[i] for i in found.listing.labels] == ["y", "x"]
    assert list(found.listing.names) == [f"{CAFE_NFD}.jpg", f"{CAFE}.jpg"]


def test_a_class_map_names_folders_in_either_form(tmp_path):
    tree = write(tmp_path / "tree", *(f"{name}/{i}.jpg" for name in (CAFE_NFD, "bar") for i in range(2)))
    (tmp_path / "map.json").write_text(json.dumps({CAFE: "x", "bar": "y"}))
    assert sorted(open_source(str(tree), 0, tmp_path / "map.json").listing.classes) == ["x", "y"]


def test_labels_of_webdataset_shards_in_two_forms_are_one_class(tmp_path):
    with tarfile.open(tmp_path / "theirs.tar", "w") as tar:
        for i in range(9):
            (tmp_path / "0.jpg").write_bytes(encoded(f"{i}"))
            (tmp_path / "0.cls").write_text((CAFE, CAFE_NFD, "bar")[i % 3])
            for ending in ("jpg", "cls"):
                tar.add(tmp_path / f"0.{ending}", f"{i}.{ending}")
    found = shard(str(tmp_path / "theirs.tar"), tmp_path / "out", val_fraction=0, workers=1, progress=False)
    assert found.classes == ("bar", CAFE) and len(found.split("train")) == 9
