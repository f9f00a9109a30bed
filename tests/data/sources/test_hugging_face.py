"""Data sets of Hugging Face on the disk become the splits, classes and images that their own library would load."""

import json
import pickle
import tempfile
from pathlib import Path

import pytest

from data.sources.recognition import open_source
from data.sources.splits import TEST, TRAIN, VAL
from data.writing.sharding import shard
from recipes.errors import UserError
from tests.data.pictures import encoded, write_tree

pyarrow = pytest.importorskip("pyarrow", reason="needs pyarrow: pip install 'bigbatch[formats]'")
pytest.importorskip("pyarrow.parquet")

FEATURES = {"image": {"_type": "Image"}, "label": {"names": ["cat", "dog"], "_type": "ClassLabel"}}
IMAGE = pyarrow.struct([("bytes", pyarrow.binary()), ("path", pyarrow.string())])


def table(prefix: str, labels: list, features: dict = FEATURES, kind=None, **more):
    images = [{"bytes": encoded(f"{prefix}{i}"), "path": f"{i}.jpg"} for i in range(len(labels))]
    label = pyarrow.array(labels, kind or pyarrow.int64())
    found = pyarrow.table({"image": pyarrow.array(images, IMAGE), "label": label, **more})
    return found.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})


def write_parquet(path: Path, *arguments, **options) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table(*arguments, **options), path)


def save_to_disk(folder: Path, *arguments) -> None:
    folder.mkdir(parents=True)
    found = table(*arguments)
    with pyarrow.ipc.new_stream(str(folder / "data-00000-of-00001.arrow"), found.schema) as stream:
        stream.write_table(found, max_chunksize=2)
    state = {"_data_files": [{"filename": "data-00000-of-00001.arrow"}], "_indices_files": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": FEATURES}))


def counts(source) -> list[int]:
    return [int((source.listing.splits == split).sum()) for split in (TRAIN, VAL, TEST)]


def test_a_snapshot_of_the_hub_has_the_splits_and_names_of_its_parquet_files(tmp_path):
    (tmp_path / "README.md").write_text("---\n---\n")
    for number in range(2):
        write_parquet(tmp_path / f"data/train-{number:05d}-of-00002.parquet", f"train{number}-", [0, 1, 0])
    write_parquet(tmp_path / "data/validation-00000-of-00001.parquet", "val", [0, 1])
    write_parquet(tmp_path / "data/test-00000-of-00001.parquet", "test", [-1, -1])
    found = open_source(str(tmp_path), 0.1)
    assert found.listing.classes == ["cat", "dog"] and counts(found) == [6, 2, 0]
    assert found.listing.labels.tolist() == [0, 1, 0, 0, 1, 0, 0, 1]
    assert found.notes == ["left out 2 images without a label"]
    assert found.read(4) == pickle.loads(pickle.dumps(found)).read(4) == encoded("train1-1")


def test_a_folder_of_save_to_disk_becomes_shards(tmp_path):
    (tmp_path / "set").mkdir()
    (tmp_path / "set/dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    save_to_disk(tmp_path / "set/train", "train", [0, 1] * 4)
    save_to_disk(tmp_path / "set/test", "test", [1, 0])
    shards = shard(str(tmp_path / "set"), tmp_path / "shards", val_fraction=0.25, progress=False)
    assert [len(shards.split(name)) for name in ("train", "val", "test")] == [6, 2, 2]
    assert {shards.split("test").read(i) for i in range(2)} == {encoded("test0"), encoded("test1")}


def test_one_split_and_one_file_alone_are_data_sets_too(tmp_path):
    save_to_disk(tmp_path / "set", "a", [0, 1] * 4)
    assert counts(open_source(str(tmp_path / "set"), 0.25)) == [6, 2, 0]
    write_parquet(tmp_path / "photos.parquet", "a", ["x", "y"] * 4, {}, pyarrow.string())
    found = open_source(str(tmp_path / "photos.parquet"), 0)
    assert found.listing.classes == ["x", "y"] and counts(found) == [8, 0, 0]


def test_listing_reads_no_images_and_reading_takes_the_memory_of_a_few_rows(tmp_path, monkeypatch):
    """Else a data set of 10 GB would take 10 GB of memory, and a complete one would be copied again for nothing."""
    images = [{"bytes": bytes([i]) * 200_000, "path": f"{i}.jpg"} for i in range(100)]
    found = table("a", [0, 1] * 50).set_column(0, "image", pyarrow.array(images, IMAGE))
    pyarrow.parquet.write_table(found, tmp_path / "train.parquet", row_group_size=5, compression="none")
    del images, found
    pool = pyarrow.proxy_memory_pool(pyarrow.default_memory_pool())
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    before = pyarrow.default_memory_pool()
    pyarrow.set_memory_pool(pool)
    try:
        opened = open_source(str(tmp_path / "train.parquet"), 0.1)
        assert pool.max_memory() < 100_000
        monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
        opened.prepare()
    finally:
        pyarrow.set_memory_pool(before)
    assert 200_000 < pool.max_memory() < 8_000_000, "the file has 20 MB, and 16 images have 3.2 MB"
    assert [opened.read(i)[:1] for i in (0, 57, 99)] == [bytes([i]) for i in (0, 57, 99)]


def test_a_full_disk_for_temporary_files_is_one_sentence(tmp_path, monkeypatch):
    write_parquet(tmp_path / "train.parquet", "a", [0, 1])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "missing"))
    with pytest.raises(UserError, match="cannot be copied into the folder for temporary files .*TMPDIR"):
        shard(str(tmp_path / "train.parquet"), tmp_path / "out", progress=False)


def test_a_class_map_renames_the_classes(tmp_path):
    write_parquet(tmp_path / "train.parquet", "a", [0, 1] * 4)
    (tmp_path / "map.json").write_text('{"cat": "felis", "dog": "canis"}')
    found = shard(
        str(tmp_path / "train.parquet"), tmp_path / "out", class_map=tmp_path / "map.json", workers=2, progress=False
    )
    assert found.classes == ("felis", "canis") and sum(map(len, found.splits.values())) == 8


def test_files_that_are_no_split_are_named_and_counted(tmp_path):
    write_parquet(tmp_path / "train.parquet", "a", [0, 1])
    write_parquet(tmp_path / "unsupervised.parquet", "b", [0, 1, 1])
    found = open_source(str(tmp_path), 0)
    assert counts(found) == [2, 0, 0]
    assert found.notes == ["left out 3 images of unsupervised.parquet, whose name says no split"]


def test_a_parquet_table_of_labels_beside_images_is_no_data_set(tmp_path):
    write_tree(tmp_path)
    pyarrow.parquet.write_table(pyarrow.table({"image": ["ant.0.jpg"], "label": [1]}), tmp_path / "labels.parquet")
    assert open_source(str(tmp_path), 0).kind == "class folders"


def test_what_cannot_be_understood_is_refused_with_the_reason(tmp_path):
    two = {"label": FEATURES["label"], "coarse": {"names": ["pet", "wild"], "_type": "ClassLabel"}}
    write_parquet(tmp_path / "two.parquet", "a", [0, 1], two, coarse=[0, 1])
    write_parquet(tmp_path / "range.parquet", "a", [0, 7])
    empty = pyarrow.array([{"bytes": None, "path": "/a.jpg"}], IMAGE)
    pyarrow.parquet.write_table(table("a", [0]).set_column(0, "image", empty), tmp_path / "paths.parquet")
    save_to_disk(tmp_path / "set", "a", [0, 1])
    write_parquet(tmp_path / "configurations/plain/train.parquet", "a", [0, 1])
    write_parquet(tmp_path / "configurations/augmented/train/0.parquet", "b", [0, 1])
    arrow = tmp_path / "set/data-00000-of-00001.arrow"
    arrow.write_bytes(arrow.read_bytes()[:600])
    for name, message in {
        "two.parquet": r"several columns of labels \(label, coarse\)",
        "range.parquet": "has the label 7, but names only 2 classes",
        "paths.parquet": "by path instead of holding them",
        "set": "is damaged",
        "configurations": r"several folders \(augmented, plain\)",
    }.items():
        with pytest.raises(UserError, match=message):
            open_source(str(tmp_path / name), 0)


def test_labels_without_names_are_numbers_in_their_order_and_may_be_missing(tmp_path):
    labels = [float(i % 11) for i in range(33)] + [float("nan")]
    write_parquet(tmp_path / "a.parquet", "a", labels, {}, pyarrow.float64())
    found = open_source(str(tmp_path / "a.parquet"), 0)
    assert found.listing.classes == [str(i) for i in range(11)] and found.notes == ["left out 1 images without a label"]
    assert found.listing.labels.tolist() == [i % 11 for i in range(33)]


@pytest.mark.parametrize(
    ("labels", "kind", "message"),
    [
        ([[0], [0, 1]], pyarrow.list_(pyarrow.int64()), "holds lists or objects"),
        ([i / 7 for i in range(9)], pyarrow.float64(), "different for nearly every image, e.g. '0.0': write it again"),
    ],
)
def test_labels_that_are_no_classes_are_one_sentence(tmp_path, labels, kind, message):
    write_parquet(tmp_path / "a.parquet", "a", labels, {}, kind)
    with pytest.raises(UserError, match=message):
        open_source(str(tmp_path / "a.parquet"), 0)


def test_names_of_classes_where_other_files_have_numbers_are_one_sentence(tmp_path):
    write_parquet(tmp_path / "train.parquet", "a", [0, 1])
    write_parquet(tmp_path / "test.parquet", "b", ["cat", "dog"], {}, pyarrow.string())
    with pytest.raises(UserError, match="has the label 'cat', but names only 2 classes, which are numbered from 0"):
        open_source(str(tmp_path), 0)


def test_a_set_without_a_single_image_is_one_sentence(tmp_path):
    """E.g. the test split of a benchmark, whose labels are kept secret."""
    write_parquet(tmp_path / "test.parquet", "a", [-1, -1])
    with pytest.raises(UserError, match="names classes, but holds no images of them"):
        open_source(str(tmp_path), 0)


def test_a_download_that_is_not_whole_is_said_and_two_versions_are_refused(tmp_path):
    """Names count the files of a split. What a download lacks, or an earlier version left, makes another data set."""
    for number in (0, 2):
        write_parquet(tmp_path / f"data/train-{number:05d}-of-00003.parquet", f"{number}", [0, 1])
    assert open_source(str(tmp_path), 0).notes == ["only 2 of the 3 files of the split train are there"]
    assert open_source(str(tmp_path / "data/train-00002-of-00003.parquet"), 0).notes == []
    write_parquet(tmp_path / "data/train-00000-of-00001.parquet", "old", [0, 1])
    with pytest.raises(UserError, match="two versions of the split train, one of 1 and of 3 files: keep one version"):
        open_source(str(tmp_path), 0)


@pytest.mark.parametrize("file", ["data/all.parquet", "data/train-00000-of-00001.parquet"])
@pytest.mark.parametrize("kind", ["text", "numbers"])
def test_a_column_of_splits_is_honoured_and_unused_columns_are_named(tmp_path, file, kind):
    """Else test images would be trained on. `datasets` calls the file of any table "train"."""
    cells = ["train", "test", "validation", "unlabelled"] * 3
    numbers = {"split": {"names": cells[:4], "_type": "ClassLabel"}} if kind == "numbers" else {}
    column = [0, 1, 2, 3] * 3 if numbers else cells
    write_parquet(tmp_path / file, "a", [0, 0, 0, 0, 1, 1, 1, 1] + [0] * 4, FEATURES | numbers, split=column, age=cells)
    found = open_source(str(tmp_path), 0.1)
    assert counts(found) == [3, 3, 3] and found.read(1) == encoded("a1")
    assert found.notes == [
        "images in the column 'image', labels in 'label', splits in 'split'; not used: 'age'",
        "left out 3 images whose 'split' names no split",
    ]


def test_a_test_file_whose_column_says_train_is_refused(tmp_path):
    write_parquet(tmp_path / "test.parquet", "a", [0, 1], split=["train", "test"])
    with pytest.raises(UserError, match="named as the test split, but its column 'split' names train rows: rename"):
        open_source(str(tmp_path), 0)


def test_a_file_that_is_cut_between_two_batches_is_damaged(tmp_path):
    """pyarrow reads the batches before the cut without an error."""
    save_to_disk(tmp_path / "set", "a", [0, 1] * 4)
    arrow = tmp_path / "set/data-00000-of-00001.arrow"
    whole = arrow.read_bytes()
    with pyarrow.ipc.open_stream(pyarrow.BufferReader(whole)) as stream:
        schema, first = stream.schema, stream.read_next_batch()
    with pyarrow.ipc.new_stream(str(arrow), schema) as stream:
        stream.write_batch(first)
    cut = arrow.read_bytes()[:-8]
    assert whole.startswith(cut)
    arrow.write_bytes(cut)
    with pytest.raises(UserError, match=r"is damaged or missing \(it ends too early\): copy it again"):
        open_source(str(tmp_path / "set"), 0)


@pytest.mark.parametrize(
    ("file", "contents"),
    [
        *(
            ("state.json", {"_data_files": found})
            for found in ([{"x": 1}], ["data.arrow"], "abc", None, 5, [{"filename": 3}])
        ),
        *(("dataset_dict.json", {"splits": found}) for found in (5, None, {"train": 1}, [["a"]], "train")),
    ],
)
def test_a_json_file_of_another_form_is_one_sentence(tmp_path, file, contents):
    (tmp_path / file).write_text(json.dumps(contents))
    with pytest.raises(UserError, match=f"{file} does not list its (data_files|splits) as `datasets` writes them"):
        open_source(str(tmp_path), 0)


@pytest.mark.parametrize("info", [[], {"info": 5}, {"info": {"features": 5}}, {"info": {"features": {"label": 5}}}])
def test_metadata_of_another_form_names_no_classes(tmp_path, info):
    found = table("a", [0, 1] * 3).replace_schema_metadata({"huggingface": json.dumps(info)})
    pyarrow.parquet.write_table(found, tmp_path / "a.parquet")
    assert open_source(str(tmp_path / "a.parquet"), 0).listing.classes == ["0", "1"]


def test_images_beside_the_files_are_counted(tmp_path):
    write_parquet(tmp_path / "train.parquet", "a", [0, 1])
    write_tree(tmp_path / "more", each=2)
    [note] = open_source(str(tmp_path), 0).notes
    assert note == "ignored 6 images beside the files of the data set, e.g. more/ant/ant.0.jpg"
