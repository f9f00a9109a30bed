"""Labels in a table beside the images, in the forms of Kaggle's competitions, image folders and spreadsheets."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from data.sources.class_map import read_class_map
from data.sources.recognition import LabelTables, open_source
from data.sources.tables import read_table
from recipes.errors import UserError
from tests.data.pictures import encoded
from tests.data.sources.test_sources import labelled, zipped


def write_images(folder: Path, names) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(encoded(str(name)))
    return folder


def with_table(source: Path, *tables: str, image: str | None = None, label: str | None = None, fraction: float = 0.25):
    return open_source(str(source), fraction, labels=LabelTables(tuple(map(Path, tables)), image, label))


@pytest.fixture
def breeds(tmp_path) -> Path:
    """Kaggle's dog-breed-identification in miniature: flat folders, and a table of ids without an ending."""
    root = write_images(tmp_path / "breeds", [f"train/{i:032x}.jpg" for i in range(12)])
    write_images(root, [f"test/{i + 99:032x}.jpg" for i in range(12)])
    rows = "\n".join(f"{i:032x},{'pug' if i % 2 else 'beagle'}" for i in range(12))
    (root / "labels.csv").write_text(f"id,breed\n{rows}\n")
    (root / "sample_submission.csv").write_text(
        "id,beagle,pug\n" + "\n".join(f"{i + 99:032x},0.5,0.5" for i in range(12))
    )
    return root


@pytest.mark.parametrize("form", ["beside", "inside", "zip"])
def test_ids_without_an_ending_and_columns_that_are_guessed(breeds, tmp_path, form):
    source = zipped(breeds, tmp_path / "breeds.zip") if form == "zip" else breeds
    found = with_table(source, str(breeds / "labels.csv") if form == "beside" else "labels.csv")
    assert found.listing.classes == ["beagle", "pug"]
    values = labelled(found)
    assert {name: label for name, (_, label) in values.items()} == {
        f"train/{i:032x}.jpg": "pug" if i % 2 else "beagle" for i in range(12)
    }
    assert sum(split == "val" for split, _ in values.values()) == 4
    assert "images in the column 'id', labels in 'breed'" in found.listing.notes[0]
    assert "left out 12 images to which no table gives a class" in found.listing.notes


def test_the_table_beside_the_images_is_offered(breeds):
    with pytest.raises(UserError, match="look like splits but hold no class folders.*add --labels labels.csv"):
        open_source(str(breeds), 0.1)


def test_a_flat_folder_with_a_table_is_offered_it_too(tmp_path):
    write_images(tmp_path / "flat", [f"{i}.jpg" for i in range(6)])
    (tmp_path / "flat/metadata.csv").write_text("file_name,label\n" + "\n".join(f"{i}.jpg,{i % 2}" for i in range(6)))
    with pytest.raises(UserError, match="no labelled images.*add --labels metadata.csv"):
        open_source(str(tmp_path / "flat"), 0.1)
    found = with_table(tmp_path / "flat", "metadata.csv", fraction=0)
    assert found.listing.classes == ["0", "1"] and found.listing.labels.tolist() == [0, 1, 0, 1, 0, 1]


def test_a_name_in_two_folders_is_that_of_the_tables_split(tmp_path):
    """Cassava: train.csv means the images in train_images/, though test_images/ has the same names."""
    root = write_images(
        tmp_path / "cassava", [f"{part}_images/{i}.jpg" for part in ("train", "test") for i in range(9)]
    )
    (root / "train.csv").write_text("image_id,label\n" + "\n".join(f"{i}.jpg,{i % 3}" for i in range(9)))
    found = with_table(root, "train.csv", fraction=0)
    assert list(labelled(found)) == [f"train_images/{i}.jpg" for i in range(9)]
    (root / "train.csv").rename(root / "all.csv")
    with pytest.raises(UserError, match="may be .*write the folder of each image into the table"):
        with_table(root, "all.csv")


def test_splits_come_from_a_column_or_from_several_tables_or_from_folders(tmp_path):
    root = write_images(tmp_path / "birds", [f"images/{i}.jpg" for i in range(12)])
    kinds = ["train", "train", "valid", "test"]
    (root / "birds.csv").write_text(
        "filepaths,labels,data set\n" + "\n".join(f"images/{i}.jpg,{'AB'[i % 2]},{kinds[i % 4]}" for i in range(12))
    )
    column = with_table(root, "birds.csv")
    assert np.bincount(column.listing.splits).tolist() == [6, 3, 3]
    assert "splits in 'data set'" in column.listing.notes[0]

    (root / "birds.csv").unlink()
    for part, numbers in (("train", range(8)), ("val", range(8, 12))):
        (root / f"{part}.csv").write_text("file,label\n" + "\n".join(f"{i}.jpg,{'AB'[i % 2]}" for i in numbers))
    assert np.bincount(with_table(root, "train.csv", "val.csv").listing.splits).tolist() == [8, 4]

    folders = write_images(tmp_path / "hub/data", [f"{part}/{i}.jpg" for part in ("train", "test") for i in range(4)])
    for part in ("train", "test"):
        (folders / part / "metadata.csv").write_text(
            "file_name,label\n" + "\n".join(f"{i}.jpg,{i % 2}" for i in range(4))
        )
    found = with_table(folders.parent, "train/metadata.csv", "test/metadata.csv", fraction=0)
    assert [split for split, _ in labelled(found).values()] == ["test"] * 4 + ["train"] * 4


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("a.csv", "image,label\r\n0.jpg,x\r\n1.jpg,y\r\n2.jpg,x\r\n"),
        ("b.csv", "\ufeffimage;label;;\r\n0.jpg;x;;\r\n1.jpg;y;;\r\n2.jpg;x;;\r\n;;;\r\n"),
        ("c.tsv", 'image\tlabel\n"0.jpg"\t"x"\n1.jpg\ty\n2.jpg\tx\n'),
        ("d.csv", "label,unnamed: 0,image\nx,0,0.jpg\ny,1,1.jpg\nx,2,2.jpg\n"),
        (
            "e.jsonl",
            '{"image": "0.jpg", "label": "x"}\n{"image": "1.jpg", "label": "y"}\n{"label": "x", "image": "2.jpg"}',
        ),
        ("f.csv", "image,x,y\n0.jpg,1,0\n1.jpg,0,1\n2.jpg,1.0,0.0\n"),
        ("g.csv", "path,label\n/kaggle/input/set/0.jpg,x\n/kaggle/input/set/1.jpg,y\nset\\2.jpg,x\n"),
        ("h.csv", "image,category_id,category\n0.jpg,7,x\n1.jpg,9,y\n2.jpg,7,x\n"),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_tables_as_spreadsheets_and_scripts_write_them(tmp_path, name, contents, encoding):
    root = write_images(tmp_path / "set", [f"{i}.jpg" for i in range(3)])
    (tmp_path / name).write_bytes(contents.removeprefix("\ufeff" if encoding == "utf-16" else "").encode(encoding))
    found = with_table(root, str(tmp_path / name), fraction=0)
    assert labelled(found) == {"0.jpg": ("train", "x"), "1.jpg": ("train", "y"), "2.jpg": ("train", "x")}


@pytest.mark.parametrize(
    ("name", "contents"),
    [
        ("val.txt", "im/my photo 0.jpg 0\nim/my photo 1.jpg 1\nim/my photo 2.jpg 0\nim/my photo 3.jpg 1\n"),
        ("t.json", json.dumps({f"my photo {i}.jpg": i % 2 for i in range(4)})),
        ("t.json", json.dumps([{"file_name": f"my photo {i}.jpg", "label": i % 2} for i in range(4)])),
    ],
)
def test_lists_and_json(tmp_path, name, contents):
    images = write_images(tmp_path / "images", [f"im/my photo {i}.jpg" for i in range(4)])
    (images / name).write_text(contents)
    found = with_table(images, name, fraction=0)
    assert found.listing.labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize(
    ("name", "contents", "message"),
    [
        ("t.xlsx", b"PK\3\4", "is a spreadsheet, which is not read: save it as CSV"),
        ("t.json", b"{", "is not valid JSON"),
        ("t.json", b'{"a": [1]}', "is neither of the form"),
        ("t.txt", b"0.jpg\n1.jpg\n", "has the line '0.jpg' without a label"),
    ],
)
def test_a_file_that_is_no_table_is_one_sentence(tmp_path, name, contents, message):
    images = write_images(tmp_path / "images", ["0.jpg", "1.jpg"])
    (images / name).write_bytes(contents)
    with pytest.raises(UserError, match=message):
        with_table(images, name)


def test_a_table_without_a_header_loses_no_row(tmp_path):
    images = write_images(tmp_path / "images", [f"im/{i}.jpg" for i in range(6)])
    (images / "labels.csv").write_text("".join(f"C:\\data\\im\\{i}.jpg,{'ab'[i % 2]}\r\n" for i in range(6)))
    found = with_table(images, "labels.csv", fraction=0)
    assert len(found.listing) == 6 and "images in the column 'column 1', labels in 'column 2'" in found.notes[0]


def test_names_whose_case_differs_are_found(tmp_path):
    """A table from Windows may name 1.JPG what an archive holds as 1.jpg; labels may look like names of images."""
    images = write_images(tmp_path / "images", [f"{i}.jpg" for i in range(6)])
    (images / "labels.csv").write_text("kind,file\n" + "".join(f"{i % 2},{i}.JPG\n" for i in range(6)))
    found = with_table(images, "labels.csv", label="kind", fraction=0)
    assert len(found.listing) == 6 and found.listing.classes == ["0", "1"]


def test_numbers_are_classes_in_their_order_also_beside_an_empty_cell(tmp_path):
    root = write_images(tmp_path / "set", [f"{i}.jpg" for i in range(24)])
    lines = [f"{i}.jpg,{i % 11}.0" for i in range(23)] + ["23.jpg,"]
    (root / "t.csv").write_text("image,label\n" + "\n".join(lines))
    found = with_table(root, "t.csv", fraction=0)
    assert found.listing.classes == [str(number) for number in range(11)]
    assert "1 rows of t.csv have no label" in found.listing.notes


@pytest.mark.parametrize(
    ("contents", "options", "message"),
    [
        ("image,label\n7.jpg,x\n8.jpg,y\n", {}, "no column of .* names the images"),
        ("image,a,b\n0.jpg,x,p\n1.jpg,y,q\n", {}, "not clear which column .*--label-column"),
        ("image,label\n0.jpg,x\n0.jpg,y\n1.jpg,x\n", {}, "give each image one class"),
        ("image,label\n0.jpg,x\n1.jpg,y\n", {"label": "breed"}, "has no column 'breed', only 'image', 'label'"),
        ("image,label\n", {}, "has no rows"),
        ("", {}, "has no rows"),
        ("image,label\n0.jpg,a\n1.jpg,b\n2.jpg,c\n", {}, "different for nearly every image"),
        ("image,label\n0.jpg,x\n1.jpg,x\n", {}, "only one class, 'x'"),
        ("image\0,label\n", {}, "is not text"),
    ],
)
def test_a_table_that_cannot_be_used_is_one_sentence(tmp_path, contents, options, message):
    root = write_images(tmp_path / "set", [f"{i}.jpg" for i in range(3)])
    (root / "t.csv").write_text(contents)
    with pytest.raises(UserError, match=message) as error:
        with_table(root, "t.csv", **options)
    assert "\n" not in str(error.value)


def test_a_table_that_is_not_there_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="no table none.csv, neither as a file nor inside"):
        with_table(write_images(tmp_path / "set", ["0.jpg"]), "none.csv")


def test_parquet_is_a_table_too(tmp_path):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    root = write_images(tmp_path / "set", [f"{i}.jpg" for i in range(4)])
    parquet.write_table(
        pyarrow.table({"image": [f"{i}.jpg" for i in range(4)], "label": [0, 1, 0, 1]}), root / "t.parquet"
    )
    assert with_table(root, "t.parquet", fraction=0).listing.labels.tolist() == [0, 1, 0, 1]


def test_the_command_takes_the_table(breeds, tmp_path):
    from launcher.cli.main import app

    done = CliRunner().invoke(app, ["shard", str(breeds), str(tmp_path / "out"), "--labels", "labels.csv"])
    assert done.exit_code == 0, done.output
    assert json.loads((tmp_path / "out/manifest.json").read_text())["classes"] == ["beagle", "pug"]


def test_a_class_map_as_a_spreadsheet_writes_it(tmp_path):
    (tmp_path / "map.csv").write_bytes("\ufeffn01;tench;\r\nn02;Grünfink;\r\n".encode())
    assert read_class_map(tmp_path / "map.csv") == {"n01": "tench", "n02": "Grünfink"}
    (tmp_path / "old.csv").write_bytes("n02,Grünfink\n".encode("cp1252"))
    assert read_class_map(tmp_path / "old.csv") == {"n02": "Grünfink"}
    (tmp_path / "names.csv").write_text('n01440764,tench, Tinca tinca\n"n02",3\n')
    assert read_class_map(tmp_path / "names.csv") == {"n01440764": "tench, Tinca tinca", "n02": 3}


def test_a_quoted_cell_may_hold_the_delimiter_and_a_line_break():
    table = read_table("t.csv", b'image,label\n0.jpg,"tench, Tinca\ntinca"\n')
    assert table.rows == [["0.jpg", "tench, Tinca\ntinca"]]


def test_images_beside_masks_are_offered_their_table(tmp_path):
    root = write_images(tmp_path / "pets", [f"images/pug_{i}.jpg" for i in range(4)])
    shutil.copytree(root / "images", root / "annotations/trimaps")
    (root / "list.csv").write_text("image,label\n" + "\n".join(f"images/pug_{i}.jpg,{i % 2}" for i in range(4)))
    with pytest.raises(UserError, match="images beside their annotations.*--labels list.csv"):
        open_source(str(root), 0.1)
    assert len(with_table(root, "list.csv", fraction=0).listing) == 4
