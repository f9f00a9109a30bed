"""No image gets the label of another: a table that is not clear is refused, and what is not used of it is named."""

import pytest

from data.sources.class_labels import numbered
from data.sources.image_names import ImageNames
from data.sources.label_columns import labelled_rows
from data.sources.recognition import open_source
from data.sources.tables import read_table
from recipes.errors import UserError
from tests.data.sources.test_sources import labelled
from tests.data.sources.test_table_labels import with_table, write_images


def rows_of(contents: str, paths: list[str]):
    return labelled_rows(read_table("t.csv", contents.encode()), ImageNames(paths).find, None, None)


def test_the_numbers_that_pandas_gives_to_rows_are_not_the_images():
    """Here row 0 is image 2: the labels of the wrong column would be those of other images."""
    paths = [f"{i}.png" for i in range(6)]
    for index in ("", "Unnamed: 0"):
        found = rows_of(f"{index},id,label\n" + "".join(f"{i},{(i + 2) % 6},{'ab'[i % 2]}\n" for i in range(6)), paths)
        assert found.images == ["2", "3", "4", "5", "0", "1"]
    assert rows_of("label,id\n" + "".join(f"{i % 3},{5 - i}\n" for i in range(6)), paths).images[0] == "5"
    assert (
        rows_of("id,image,label\n" + "".join(f"{5 - i},{i}.png,{i % 2}\n" for i in range(6)), paths).images[0]
        == "0.png"
    )


def test_two_columns_that_name_different_images_are_refused():
    with pytest.raises(UserError, match="'before' and 'after' of t.csv both name images, but not the same ones"):
        rows_of("before,after,label\n0.png,1.png,a\n2.png,3.png,b\n", [f"{i}.png" for i in range(4)])
    both = rows_of("file,path,label\n0.png,b/0.png,x\n1.png,a/1.png,y\n", ["a/0.png", "a/1.png", "b/0.png", "b/1.png"])
    assert both.images == ["b/0.png", "a/1.png"], "the column with the folders says which one"


def test_an_image_of_another_split_is_not_the_one_that_is_meant():
    """Numbered images have the same names in every split: the labels of train/ must never be given to test/."""
    assert ImageNames(["test/1.jpg"]).find("train/1.jpg") == []
    assert ImageNames(["test/1.jpg"]).find("D:\\data\\Testing\\1.jpg") == [0]
    assert ImageNames(["train/img/1.jpg", "1.jpg"]).find("/home/dev/set/of/mine/1.jpg") == [0, 1]


def test_rows_of_folders_that_are_missing_are_not_taken_for_others(tmp_path):
    root = write_images(tmp_path / "set", [f"a/{i}.jpg" for i in range(4)])
    (root / "t.csv").write_text(
        "path,label\n" + "".join(f"{folder}/{i}.jpg,{i % 2}\n" for folder in "ab" for i in range(4))
    )
    with pytest.raises(UserError, match="'a/0.jpg' and 'b/0.jpg' in t.csv both seem to be a/0.jpg"):
        with_table(root, "t.csv")
    (root / "t.csv").write_text("path,label\n" + "".join(f"original/{i}.jpg,{i % 2}\n" for i in range(4)))
    notes = with_table(root, "t.csv", fraction=0).notes
    assert (
        "4 rows of t.csv name an image in another folder, e.g. 'original/0.jpg', which is taken to be a/0.jpg" in notes
    )


def test_rows_whose_split_is_not_known_are_left_out_and_counted(tmp_path):
    root = write_images(tmp_path / "set", [f"{i}.jpg" for i in range(8)])
    kinds = ["train", "test", "extra", "train"]
    (root / "t.csv").write_text("image,label,split\n" + "".join(f"{i}.jpg,{i // 4},{kinds[i % 4]}\n" for i in range(8)))
    found = with_table(root, "t.csv", fraction=0)
    assert {name: split for name, (split, _) in labelled(found).items()} == {
        f"{i}.jpg": kinds[i % 4] for i in range(8) if i % 4 != 2
    }
    assert "left out 2 rows of t.csv whose 'split' names no split: 'extra'" in found.notes


def test_columns_that_are_not_used_are_named(tmp_path):
    """A column `split` of numbers would else be ignored without a word."""
    root = write_images(tmp_path / "set", [f"{i}.jpg" for i in range(6)])
    (root / "t.csv").write_text(
        "image,label,split,fold\n" + "".join(f"{i}.jpg,{i % 2},{i % 3},{i}\n" for i in range(6))
    )
    assert with_table(root, "t.csv", fraction=0).notes[0].endswith("labels in 'label'; not used: 'split', 'fold'")


def test_an_image_in_two_splits_is_refused(tmp_path):
    root = write_images(tmp_path / "set", [f"{i}.jpg" for i in range(6)])
    for name, numbers in (("train", range(4)), ("val", range(3, 6))):
        (root / f"{name}.csv").write_text("image,label\n" + "".join(f"{i}.jpg,{i % 2}\n" for i in numbers))
    with pytest.raises(UserError, match="'3.jpg' is in the train and in the val split, according to val.csv"):
        with_table(root, "train.csv", "val.csv")


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("t.csv", "image,label\n0.jpg,cat, big\n1.jpg,dog, small\n", "has 2 columns, but a row of 3 cells"),
        ("t.csv", "image,tags\n0.jpg,\"['a', 'b']\"\n1.jpg,['a']\n", "column 'tags' of t.csv holds lists or objects"),
        ("t.jsonl", '{"image": "0.jpg", "objects": {"box": [1]}}\n{"image": "1.jpg"}\n', "holds lists or objects"),
        ("t.csv", "image,partition\n0.jpg,0\n1.jpg,1\n", "not clear which column of t.csv holds the labels"),
    ],
)
def test_labels_that_are_no_classes_are_one_sentence(tmp_path, name, contents, message):
    root = write_images(tmp_path / "set", ["0.jpg", "1.jpg"])
    (root / name).write_text(contents)
    with pytest.raises(UserError, match=message) as error:
        with_table(root, name)
    assert "\n" not in str(error.value)


def test_what_pandas_and_excel_write_is_no_label(tmp_path):
    root = write_images(tmp_path / "set", [f"{i}.jpg" for i in range(5)])
    (root / "t.csv").write_text(
        "sep=;\r\nimage;label\r\n0.jpg;1.0\r\n1.jpg;2.0\r\n2.jpg;nan\r\n3.jpg;NaN\r\n4.jpg;1.0\r\n"
    )
    found = with_table(root, "t.csv", fraction=0)
    assert found.listing.classes == ["1", "2"] and len(found.listing) == 3
    assert "2 rows of t.csv have no label" in found.notes


def test_the_tables_of_all_splits_are_offered_together(tmp_path):
    """With that of one split alone, its images would be divided anew. Predictions to hand in are no labels."""
    for split in ("train", "valid", "test"):
        root = write_images(tmp_path / "set", [f"{split}/{split}{i}.jpg" for i in range(4)])
        rows = "".join(f"{split}{i}.jpg,{i % 2},{1 - i % 2}\n" for i in range(4))
        (root / split / "_classes.csv").write_text("filename, cat, dog\n" + rows)
    (root / "a_submission.csv").write_text("id,label\n" + "".join(f"test{i}.jpg,0\n" for i in range(4)))
    offer = "add --labels test/_classes.csv --labels train/_classes.csv --labels valid/_classes.csv$"
    with pytest.raises(UserError, match=offer):
        open_source(str(root), 0.1)
    found = with_table(root, *(f"{split}/_classes.csv" for split in ("train", "valid", "test")))
    assert sorted(split for split, _ in labelled(found).values()) == ["test"] * 4 + ["train"] * 4 + ["val"] * 4


def test_numbers_of_equal_value_have_a_fixed_order():
    """In the order of a set, which each process has its own of, the same command would make another data set."""
    labels = [f"{'0' * zeros}{number}" for number in range(1, 12) for zeros in range(4)]
    assert numbered(labels * 2, "set", "")[1] == [f"{'0' * z}{n}" for n in range(1, 12) for z in (3, 2, 1, 0)]
