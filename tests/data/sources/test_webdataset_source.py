"""Other people's WebDataset shards are indexed where they are, whatever of cls, json and txt holds the label."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data.reading.tar_samples import TarSample
from data.sources.recognition import open_source
from data.sources.webdataset_shards import label_text
from data.writing.sharding import shard
from data.writing.verify import verify
from recipes.errors import UserError
from tests.data.pictures import contents, encoded, write_tree

EACH = 12


def write_shard(path: Path, labels: list, form: str = "cls", ending: str = "jpg") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w") as tar:
        for number, label in enumerate(labels):
            content = json.dumps(label) if form == "json" else str(label)
            members = {ending: encoded(f"{path.name}{number}"), form: content.encode()}
            for member_ending, data in members.items():
                member = tarfile.TarInfo(f"folder/{path.stem}_{number:04d}.{member_ending}")
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def stored(found, split: str) -> dict[bytes, str]:
    part = found.split(split)
    return {part.read(i): found.classes[part.labels[i]] for i in range(len(part))}


@pytest.mark.parametrize(
    ("form", "labels", "classes"),
    [
        ("cls", [0, 1, 2], ["0", "1", "2"]),
        ("json", [{"label": 2, "class_name": "x"}, {"label": 0}, {"label": 1}], ["0", "1", "2"]),
        ("json", [{"class_name": "cat"}, {"class_name": "ant"}], ["ant", "cat"]),
        ("json", [1, 0], ["0", "1"]),
        ("txt", ["dog\n", "cat\n"], ["cat", "dog"]),
    ],
)
def test_labels_in_each_form(tmp_path, form, labels, classes):
    source = tmp_path / "theirs"
    for number in range(2):
        write_shard(source / f"train-{number:03d}.tar", [labels[i % len(labels)] for i in range(EACH)], form)
    write_shard(source / "val-000.tar", labels, form)
    before = contents(source)
    found = shard(str(source), tmp_path / "out", progress=False)
    assert found.classes == tuple(classes)
    train = stored(found, "train")
    assert len(train) == 2 * EACH and len(found.split("val")) == len(labels)
    text = str(
        labels[0].get("label", labels[0].get("class_name")) if isinstance(labels[0], dict) else labels[0]
    ).strip()
    assert train[encoded("train-000.tar0")] == text
    assert contents(source) == before, "nothing is rewritten"
    assert sorted(contents(tmp_path / "out")) == ["manifest.json", "train.index.npy", "val.index.npy"]
    assert verify(tmp_path / "out", progress=False) == []
    assert found.split("train").sample_name(0) == "folder/train-000_0000.jpg in train-000.tar"


def test_without_split_names_images_of_each_class_are_held_out(tmp_path):
    for number in range(3):
        write_shard(tmp_path / f"theirs/{number:03d}.tar", [i % 2 for i in range(EACH)])
    found = shard(str(tmp_path / "theirs"), tmp_path / "out", val_fraction=0.25, progress=False)
    train, val = stored(found, "train"), stored(found, "val")
    assert sorted(val.values()) == ["0"] * 4 + ["1"] * 4
    assert not train.keys() & val.keys() and len(train) + len(val) == 3 * EACH
    assert verify(tmp_path / "out", progress=False) == []


@pytest.mark.parametrize(
    "layout", ["{split}/{number}.tar", "imagenet22k-{split}-{number}.tar", "my_{split}_{number}.tar"]
)
def test_splits_come_from_file_or_folder_names(tmp_path, layout):
    for split in ("train", "validation"):
        for number in range(2):
            write_shard(tmp_path / "theirs" / layout.format(split=split, number=number), [0, 1, 1])
    found = shard(str(tmp_path / "theirs"), tmp_path / "out", progress=False)
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 6, "val": 6}


def test_a_single_shard_serves(tmp_path):
    path = write_shard(tmp_path / "all.tar", [i % 2 for i in range(EACH)])
    assert len(shard(str(path), tmp_path / "out", val_fraction=0, progress=False).split("train")) == EACH


def test_a_class_map_names_numbers_and_leaves_classes_out(tmp_path):
    write_shard(tmp_path / "theirs/train-0.tar", [0, 1, 2] * 4)
    (tmp_path / "names.txt").write_text("2 cow\n0 ant\n")
    found = shard(str(tmp_path / "theirs"), tmp_path / "out", class_map=tmp_path / "names.txt", progress=False)
    assert found.classes == ("ant", "cow") and sum(map(len, found.splits.values())) == 8
    assert (
        stored(found, "train").items()
        <= {encoded(f"train-0.tar{i}"): ["ant", "", "cow"][i % 3] for i in range(12)}.items()
    )
    assert verify(tmp_path / "out", progress=False) == []


def test_damaged_and_unlabelled_samples_are_left_out_and_named(tmp_path):
    path = write_shard(tmp_path / "theirs/train-0.tar", [0, 1, 0, "", 1])
    data = bytearray(path.read_bytes())
    place = data.find(encoded("train-0.tar2"))
    data[place : place + 300] = bytes(300)
    path.write_bytes(data)
    found = shard(str(path.parent), tmp_path / "out", val_fraction=0, progress=False)
    skipped = json.loads((tmp_path / "out/manifest.json").read_text())["skipped"]
    assert [entry["name"] for entry in skipped] == [f"folder/train-0_000{i}.jpg in train-0.tar" for i in (2, 3)]
    assert skipped[1]["reason"] == "it has no label" and len(found.split("train")) == 3
    assert verify(tmp_path / "out", progress=False) == []


def test_number_of_workers_never_changes_a_byte(tmp_path):
    for number in range(4):
        write_shard(tmp_path / f"theirs/{number}.tar", ["a", "b", "c"], "txt")
    for workers in (1, 3):
        shard(str(tmp_path / "theirs"), tmp_path / str(workers), workers=workers, progress=False)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_verify_names_their_shard_and_sample(tmp_path):
    path = write_shard(tmp_path / "theirs/train-0.tar", [0, 1] * 3)
    found = shard(str(path.parent), tmp_path / "out", val_fraction=0, progress=False)
    row = found.split("train").index[2]
    data = bytearray(path.read_bytes())
    data[row["offset"] : row["offset"] + 200] = bytes(200)
    path.write_bytes(data)
    problems = verify(tmp_path / "out", progress=False)
    assert any("train-0.tar" in problem and "checksum" in problem for problem in problems)
    assert any("folder/train-0_0002.jpg" in problem and "decoded" in problem for problem in problems)


def test_verify_names_a_damaged_index_alone(tmp_path):
    write_shard(tmp_path / "theirs/0.tar", [0, 1] * 4)
    shard(str(tmp_path / "theirs"), tmp_path / "out", val_fraction=0.25, progress=False)
    (tmp_path / "out/train.index.npy").write_bytes(b"")
    assert all("index train.index.npy" in problem for problem in verify(tmp_path / "out", progress=False))


@pytest.mark.parametrize(
    ("labels", "form", "message"),
    [
        (["a image of one", "another one", "a third", "a fourth"], "txt", "different for nearly every image"),
        ([0, 10**12], "cls", "no class number"),
        ([0, 0], "cls", "only one class"),
    ],
)
def test_labels_that_are_no_classes_are_one_sentence(tmp_path, labels, form, message):
    write_shard(tmp_path / "theirs/0.tar", labels, form)
    with pytest.raises(UserError, match=message):
        shard(str(tmp_path / "theirs"), tmp_path / "out", progress=False)


def test_a_shard_cut_short_is_one_sentence(tmp_path):
    write_shard(tmp_path / "theirs/0.tar", [0, 1])
    path = write_shard(tmp_path / "theirs/1.tar", [0, 1])
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(UserError, match="1.tar is not a whole tar"):
        shard(str(tmp_path / "theirs"), tmp_path / "out", progress=False)


def test_a_size_limit_is_refused_since_nothing_is_rewritten(tmp_path):
    write_shard(tmp_path / "theirs/0.tar", [0, 1])
    with pytest.raises(UserError, match="not rewritten"):
        shard(str(tmp_path / "theirs"), tmp_path / "out", longest_side=10, progress=False)


def test_names_that_tell_the_split_of_only_some_shards_are_one_sentence(tmp_path):
    write_shard(tmp_path / "theirs/val-0.tar", [0, 1])
    write_shard(tmp_path / "theirs/other.tar", [0, 1])
    with pytest.raises(UserError, match="other.tar does not say"):
        open_source(str(tmp_path / "theirs"), 0.1)


def test_our_own_data_set_is_not_mistaken_for_a_source(tmp_path):
    shard(str(write_tree(tmp_path / "tree")), tmp_path / "ours", progress=False)
    with pytest.raises(UserError, match="already"):
        open_source(str(tmp_path / "ours"), 0.1)


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        ({"cls": b"3", "json": b'{"label": 4}'}, "3"),
        ({"json": b'{"label": 4, "class_name": "x"}', "txt": b"x"}, "4"),
        ({"json": b'{"label": true, "class_name": "x"}'}, "x"),
        ({"json": b"{", "txt": b"x"}, None),
        ({"txt": b" x \n"}, "x"),
        ({"cls": b""}, None),
        ({}, None),
    ],
)
def test_which_label_member_decides(labels, expected):
    assert label_text(TarSample("key", labels=labels)) == expected


def test_an_image_of_another_ending_is_found(tmp_path):
    write_shard(tmp_path / "theirs/0.tar", [0, 1] * 2, ending="jpeg")
    found = shard(str(tmp_path / "theirs"), tmp_path / "out", val_fraction=0, progress=False)
    assert np.array_equal(found.split("train").labels, [0, 1, 0, 1])
