"""Random damage in the files of sources, seeded and bounded: an image, or one sentence; never a traceback."""

import json
from pathlib import Path

import pytest

from data.images.inspection import Unreadable
from data.sources.class_map import read_class_map
from data.sources.recognition import LabelTables, open_source
from recipes.errors import UserError
from tests.data.pictures import encoded
from tests.data.writing.test_damaged_bytes import ROUNDS, damaged

LABELS = {f"{i}.jpg": i % 2 for i in range(6)}
TABLES = {
    "labels.tsv": "image\tlabel\n" + "".join(f"{image}\t{label}\n" for image, label in LABELS.items()),
    "labels.csv": "image;label;about\n" + "".join(f'{image};{label};"a\nb"\n' for image, label in LABELS.items()),
    "labels.jsonl": "".join(json.dumps({"image": image, "label": label}) + "\n" for image, label in LABELS.items()),
    "labels.json": json.dumps(LABELS),
    "labels.txt": "".join(f"{image} {label}\n" for image, label in LABELS.items()),
}


def read_all(path: Path, images: int) -> None:
    """List a source and read its images; a `UserError` has to be one line."""
    try:
        found = open_source(str(path), 0)
        found.prepare()
        assert 0 < len(found.listing) <= images
        for i in range(len(found.listing)):
            found.read(i)
    except UserError as error:
        assert "\n" not in str(error)
    except Unreadable as unreadable:
        assert "\n" not in unreadable.reason


@pytest.fixture(scope="module")
def flat(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("flat")
    for image in LABELS:
        (folder / image).write_bytes(encoded(image))
    return folder


def read_labels(flat: Path, table: Path) -> None:
    try:
        found = open_source(str(flat), 0, labels=LabelTables((table,)))
        assert 0 < len(found.listing) <= len(LABELS) and len(found.listing.classes) >= 2
    except UserError as error:
        assert "\n" not in str(error)


@pytest.mark.parametrize("name", TABLES)
def test_a_table_of_any_kind_gives_labels_or_one_sentence(flat, tmp_path, name):
    for seed in range(2 * ROUNDS):
        (tmp_path / name).write_bytes(damaged(TABLES[name].encode(), seed))
        read_labels(flat, tmp_path / name)


@pytest.mark.parametrize(
    "contents", ["[" * 100_000, '{"0.jpg": ' * 100_000, "9" * 5000, '{"0.jpg": ' + "9" * 5000 + "}"]
)
@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
def test_json_that_is_too_deep_or_too_long_is_one_sentence(flat, tmp_path, name, contents):
    (tmp_path / name).write_text(contents)
    read_labels(flat, tmp_path / name)
    with pytest.raises(UserError, match="^[^\n]*class map"):
        read_class_map((tmp_path / name).rename(tmp_path / "map.json"))


@pytest.mark.parametrize(
    ("name", "text"), [("a.json", '{"a": "x", "b": "y", "c": 1}'), ("a.txt", "a x\nb y\n"), ("a.csv", "a,x\nb,y\n")]
)
def test_a_class_map_is_read_or_is_one_sentence(tmp_path, name, text):
    for seed in range(2 * ROUNDS):
        (tmp_path / name).write_bytes(damaged(text.encode(), seed))
        try:
            read_class_map(tmp_path / name)
        except UserError as error:
            assert "\n" not in str(error)


def test_long_numbers_in_a_class_map_are_names(tmp_path):
    """Python refuses to read them as numbers."""
    (tmp_path / "map.txt").write_text(f"a {'9' * 5000}\nb 1\n")
    assert read_class_map(tmp_path / "map.txt") == {"a": "9" * 5000, "b": 1}


@pytest.mark.parametrize("name", ["photos.parquet", "saved/data.arrow", "saved/state.json", "both/dataset_dict.json"])
def test_a_hugging_face_data_set_gives_its_images_or_one_sentence(tmp_path, name):
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'bigbatch[formats]'")
    pytest.importorskip("pyarrow.parquet")
    images = [{"bytes": encoded(f"{i}"), "path": None} for i in range(6)]
    rows = pyarrow.table({"image": images, "label": [i % 2 for i in range(6)], "split": ["train", "test"] * 3})
    pyarrow.parquet.write_table(rows, tmp_path / "photos.parquet")
    for folder in ("saved", "both/train"):
        (tmp_path / folder).mkdir(parents=True)
        with pyarrow.ipc.new_stream(str(tmp_path / folder / "data.arrow"), rows.schema) as stream:
            stream.write_table(rows, max_chunksize=2)
        (tmp_path / folder / "state.json").write_text(json.dumps({"_data_files": [{"filename": "data.arrow"}]}))
    (tmp_path / "both/dataset_dict.json").write_text(json.dumps({"splits": ["train"]}))
    file, top = tmp_path / name, tmp_path / name.partition("/")[0]
    original = file.read_bytes()
    for seed in range(ROUNDS if name == "photos.parquet" else 2 * ROUNDS):
        file.write_bytes(damaged(original, seed))
        read_all(top, 6)


def test_a_parquet_table_gives_labels_or_one_sentence(flat, tmp_path):
    pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'bigbatch[formats]'")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = pyarrow.table({"image": list(LABELS), "label": [f"class {label}" for label in LABELS.values()]})
    parquet.write_table(rows, tmp_path / "labels.parquet")
    original = (tmp_path / "labels.parquet").read_bytes()
    for seed in range(ROUNDS):
        (tmp_path / "labels.parquet").write_bytes(damaged(original, seed))
        read_labels(flat, tmp_path / "labels.parquet")


def test_a_7z_archive_gives_its_images_or_one_sentence(tmp_path):
    py7zr = pytest.importorskip("py7zr", reason="needs py7zr: pip install 'bigbatch[formats]'")
    with py7zr.SevenZipFile(tmp_path / "set.7z", "w") as archive:
        for name in ("a/0.jpg", "a/1.jpg", "b/0.jpg", "b/1.jpg"):
            archive.writestr(encoded(name), name)
    original = (tmp_path / "set.7z").read_bytes()
    for seed in range(ROUNDS):
        (tmp_path / "set.7z").write_bytes(damaged(original, seed))
        read_all(tmp_path / "set.7z", 4)
