"""How each kind of source is recognised, and how its images are labelled and split."""

import shutil
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest

from data.images.inspection import inspect
from data.sources.recognition import open_source
from data.sources.splits import SPLITS, TRAIN, VAL, hold_out
from recipes.errors import UserError
from tests.data.pictures import encoded, write_tree


def labelled(source) -> dict[str, tuple[str, str]]:
    """Split and class of each image, by name."""
    listing = source.listing
    return {
        name: (SPLITS[listing.splits[i]], listing.classes[listing.labels[i]]) for i, name in enumerate(listing.names)
    }


def zipped(folder: Path, path: Path, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as archive:
        for file in sorted(folder.rglob("*")):
            archive.write(file, file.relative_to(folder))
    return path


def every_image_reads(source) -> bool:
    return all(inspect(source.read(i)) for i in range(len(source.listing)))


def test_class_folders_get_a_validation_split_of_each_class(tmp_path):
    found = open_source(str(write_tree(tmp_path / "tree")), 0.2)
    assert found.listing.classes == ["ant", "bee", "cow"]
    splits = labelled(found)
    for name in found.listing.classes:
        assert sum(value == ("val", name) for value in splits.values()) == 2
        assert sum(value == ("train", name) for value in splits.values()) == 8
    assert every_image_reads(found)


@pytest.mark.parametrize("validation", ["val", "valid", "validation", "dev", "Val"])
def test_split_folders_are_kept(tmp_path, validation):
    write_tree(tmp_path / "tree/train", each=4)
    write_tree(tmp_path / "tree" / validation, each=2)
    splits = labelled(open_source(str(tmp_path / "tree"), 0.5))
    assert splits["train/ant/ant.0.jpg"] == ("train", "ant")
    assert splits[f"{validation}/bee/bee.1.jpg"] == ("val", "bee")
    assert sum(split == "val" for split, _ in splits.values()) == 6 and len(splits) == 18


def test_train_val_and_test_folders_are_three_splits(tmp_path):
    for split in ("train", "val", "test"):
        write_tree(tmp_path / "tree" / split, each=2)
    found = open_source(str(tmp_path / "tree"), 0.1)
    assert np.bincount(found.listing.splits).tolist() == [6, 6, 6] and found.listing.notes == []


def test_an_unlabelled_test_folder_is_not_mistaken_for_a_split(tmp_path):
    write_tree(tmp_path / "tree/train", each=10)
    (tmp_path / "tree/test").mkdir()
    (tmp_path / "tree/test/1.jpg").write_bytes(encoded("1"))
    found = open_source(str(tmp_path / "tree"), 0.1)
    assert found.listing.classes == ["ant", "bee", "cow"]
    assert sum(split == "val" for split, _ in labelled(found).values()) == 3


def test_folders_that_hold_everything_and_system_files_do_not_matter(tmp_path):
    write_tree(tmp_path / "tree/download/animals")
    (tmp_path / "tree/download/animals/ant/.hidden.jpg").write_bytes(b"")
    (tmp_path / "tree/download/animals/ant/Thumbs.db").write_bytes(b"")
    found = open_source(str(tmp_path / "tree"), 0.1)
    assert found.listing.classes == ["ant", "bee", "cow"] and len(found.listing) == 30


@pytest.mark.parametrize("ending", ["zip", "deflated.zip", "tar", "tar.gz"])
def test_an_archive_of_class_folders_is_the_same_as_the_folder(tmp_path, ending):
    tree = write_tree(tmp_path / "tree")
    path = tmp_path / f"tree.{ending}"
    if ending.endswith("zip"):
        zipped(tree, path, zipfile.ZIP_DEFLATED if ending.startswith("d") else zipfile.ZIP_STORED)
    else:
        with tarfile.open(path, "w:gz" if ending.endswith("gz") else "w") as archive:
            archive.add(tree, ".")
    folder, packed = open_source(str(tree), 0.2), open_source(str(path), 0.2)
    assert packed.listing.digest() == folder.listing.digest()
    assert all(packed.read(i) == folder.read(i) for i in range(len(folder.listing)))


def test_the_split_depends_on_names_not_on_other_files_order():
    names = [f"{number}.jpg" for number in range(100)]
    labels = np.arange(100) % 3
    one = dict(zip(names, hold_out(names, labels, 0.2)))
    other = dict(zip(names[::-1], hold_out(names[::-1], labels[::-1], 0.2)))
    assert one == other
    assert set(one.values()) == {TRAIN, VAL}
    assert not hold_out(names, labels, 0.0).any()


def test_a_class_of_two_images_has_one_in_each_split():
    assert sorted(hold_out(["a", "b", "c", "d"], np.array([0, 0, 1, 1]), 0.01)) == [TRAIN, TRAIN, VAL, VAL]


@pytest.fixture
def kaggle(tmp_path) -> Path:
    """A folder with the files of Kaggle's train.zip and test1.zip."""
    (tmp_path / "kaggle/train").mkdir(parents=True)
    (tmp_path / "kaggle/test1").mkdir()
    for number in range(10):
        for name in ("cat", "dog"):
            (tmp_path / f"kaggle/train/{name}.{number}.jpg").write_bytes(encoded(f"{name}{number}"))
        (tmp_path / f"kaggle/test1/{number}.jpg").write_bytes(encoded(f"test{number}"))
    return tmp_path / "kaggle"


@pytest.mark.parametrize(
    "form", ["folder", "train folder", "zip", "nested zip", "nested zip, deflated", "unpacked once"]
)
def test_cats_vs_dogs_as_kaggle_ships_it(kaggle, tmp_path, form):
    path = kaggle
    if form == "train folder":
        path = kaggle / "train"
    elif form == "zip":
        path = zipped(kaggle, tmp_path / "dogs-vs-cats.zip")
    elif form != "folder":
        outer = tmp_path / "outer"
        for part in ("train", "test1"):
            (outer / "in").mkdir(parents=True, exist_ok=True)
            shutil.copytree(kaggle / part, outer / "in" / part)
            zipped(outer / "in", outer / f"{part}.zip")
            shutil.rmtree(outer / "in")
        (outer / "sampleSubmission.csv").write_text("id,label\n")
        method = zipfile.ZIP_DEFLATED if "deflated" in form else zipfile.ZIP_STORED
        path = outer if form == "unpacked once" else zipped(outer, tmp_path / "dogs-vs-cats.zip", method)
    found = open_source(str(path), 0.2)
    assert found.kind == "Kaggle cats-vs-dogs" and found.listing.classes == ["cat", "dog"]
    splits = labelled(found)
    assert len(splits) == 20 and all(name.startswith(value[1]) for name, value in splits.items())
    assert sum(value == ("val", "cat") for value in splits.values()) == 2
    assert every_image_reads(found)


def test_class_folders_of_files_named_like_kaggles_keep_their_own_split(tmp_path):
    for split, numbers in (("train", range(4)), ("validation", range(4, 6))):
        for name in ("cat", "dog"):
            (tmp_path / f"tree/{split}/{name}s").mkdir(parents=True)
            for number in numbers:
                (tmp_path / f"tree/{split}/{name}s/{name}.{number}.jpg").write_bytes(encoded(f"{name}{number}"))
    found = open_source(str(tmp_path / "tree"), 0.5)
    assert found.kind == "class folders" and found.listing.classes == ["cats", "dogs"]
    assert sum(split == "val" for split, _ in labelled(found).values()) == 4


def test_the_real_images_are_recognised(dogs_vs_cats_zip):
    found = open_source(str(dogs_vs_cats_zip), 0.1)
    assert found.kind == "Kaggle cats-vs-dogs" and len(found.listing) == 2400
    assert np.bincount(found.listing.labels[found.listing.splits == VAL]).tolist() == [120, 120]
    assert inspect(found.read(0)).extension == "jpg"


def test_cifar10_as_jpeg_keeps_its_own_test_split(cifar10_zip):
    found = open_source(str(cifar10_zip), 0.1)
    assert len(found.listing.classes) == 10
    assert np.bincount(found.listing.splits).tolist() == [45_000, 5_000, 10_000]
    assert "5,000 training images are the validation split" in found.listing.notes[0]
    assert inspect(found.read(59_999)).extension == "jpg"


def test_digits_come_with_a_dependency():
    found = open_source("digits", 0.1)
    assert found.listing.classes == [str(digit) for digit in range(10)] and len(found.listing) == 1797
    from io import BytesIO

    from PIL import Image

    image = Image.open(BytesIO(found.read(5)))
    assert (image.format, image.mode, image.size) == ("JPEG", "RGB", (32, 32))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda path: None, "there is no"),
        (lambda path: path.mkdir(), "holds no images"),
        (lambda path: write_tree(path, classes=("only",)), "only one class, 'only'"),
        (lambda path: (path.mkdir(), (path / "1.jpg").write_bytes(encoded("1"))), "no labelled images"),
        (lambda path: path.write_text("what is this"), "not a folder, zip or tar"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(tmp_path, make, message):
    make(tmp_path / "source")
    with pytest.raises(UserError, match=message) as error:
        open_source(str(tmp_path / "source"), 0.1)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("cut", [0, 100, -30])
@pytest.mark.parametrize("ending", ["zip", "tar", "tar.gz"])
def test_a_damaged_archive_is_one_sentence(tmp_path, ending, cut):
    tree = write_tree(tmp_path / "tree", each=2)
    path = Path(shutil.make_archive(str(tmp_path / "a"), {"zip": "zip", "tar": "tar", "tar.gz": "gztar"}[ending], tree))
    data = path.read_bytes()
    if ending == "tar":
        data = data.rstrip(b"\0")  # a tar ends in padding that nobody misses
    path.write_bytes(data[:cut])
    with pytest.raises(UserError, match="a.zip|a.tar"):
        open_source(str(path), 0.1)


def test_an_impossible_validation_share_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="validation fraction of 1.5"):
        open_source(str(tmp_path), 1.5)


def mapped(tmp_path, text: str, name: str = "map.txt"):
    write_tree(tmp_path / "tree", each=4)
    (tmp_path / name).write_text(text)
    return open_source(str(tmp_path / "tree"), 0.25, tmp_path / name)


def test_a_class_map_renames_in_the_order_of_the_folders(tmp_path):
    found = mapped(tmp_path, "cow domestic cattle, Bos taurus\nant\tworker\nbee honey bee\n")
    assert found.listing.classes == ["worker", "honey bee", "domestic cattle, Bos taurus"]
    assert labelled(found)["cow/cow.1.jpg"][1] == "domestic cattle, Bos taurus"


def test_a_class_map_joins_classes_and_leaves_out_what_it_does_not_name(tmp_path):
    write_tree(tmp_path / "tree", classes=("dog",))
    found = mapped(tmp_path, '{"ant": "insect", "bee": "insect", "cow": "mammal"}', "map.json")
    assert found.listing.classes == ["insect", "mammal"]
    assert np.bincount(found.listing.labels).tolist() == [8, 4]
    assert "left out 10 images of 1 classes" in found.listing.notes[0]
    assert every_image_reads(found)


def test_a_class_map_with_numbers_gives_the_labels(tmp_path):
    found = mapped(tmp_path, "ant,2\nbee,0\ncow,1\n", "map.csv")
    assert found.listing.classes == ["bee", "cow", "ant"]
    assert labelled(found)["ant/ant.0.jpg"][1] == "ant"


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        ("ant\n", "map.txt", "line 1"),
        ("ant 0\nbee 2\n", "map.txt", "0 to 1 without a gap"),
        ("ant 0\nbee b\n", "map.txt", "either names or numbers"),
        ("horse h\n", "map.txt", "none of the classes, which are ant, bee"),
        ("ant one\n", "map.txt", "only one class"),
        ("{", "map.json", "not valid JSON"),
        ('{"ant": ["x"]}', "map.json", "must be of the form"),
    ],
)
def test_an_impossible_class_map_is_one_sentence(tmp_path, text, name, message):
    with pytest.raises(UserError, match=message):
        mapped(tmp_path, text, name)
