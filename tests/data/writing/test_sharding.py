"""What `bigbatch shard` promises about the files that it writes."""

import io
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.reading.shards import INDEX_DTYPE
from data.writing.shard_parts import sample_key
from data.writing.sharding import shard
from data.writing.verify import verify
from recipes.errors import UserError
from tests.data.pictures import contents, encoded

SMALL = 40_000  # bytes of a shard, so that a few dozen images make several


def test_plain_webdataset_reads_the_same_images_and_labels(tree, tmp_path):
    import webdataset

    found = shard(str(tree), tmp_path / "out", shard_size=SMALL, progress=False)
    for split in found.splits.values():
        assert len(split.shard_paths) >= 1
        plain = webdataset.WebDataset([str(path) for path in split.shard_paths], shardshuffle=False).decode("rgb8")
        samples = list(plain)
        assert len(samples) == len(split)
        for i, sample in enumerate(samples):
            assert sample["cls"] == split.labels[i]
            ours = np.asarray(Image.open(io.BytesIO(split.read(i))).convert("RGB"))
            assert np.array_equal(sample["jpg"], ours)
    assert len(found.split("train").shard_paths) > 1


def test_every_image_is_stored_once_byte_for_byte_with_its_label_and_name(tree, tmp_path):
    found = shard(str(tree), tmp_path / "out", shard_size=SMALL, progress=False)
    assert found.classes == ("ant", "bee", "cow")
    stored = {}
    for split in found.splits.values():
        for i in range(len(split)):
            label = found.classes[split.labels[i]]
            name = split.sample_name(i)
            assert f"-{label}_{label}_" in name and split.shard_paths[split.index[i]["shard"]].name in name
            stored[split.read(i)] = label
    original = {path.read_bytes(): path.parent.name for path in tree.rglob("*.jpg")}
    assert stored == original


def test_names_in_any_script_are_kept_and_read_back_by_plain_webdataset(tmp_path):
    import webdataset

    for number in range(2):
        for folder in ("große Tiere", "猫"):
            (tmp_path / "tree" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "tree" / folder / f"é.{number}.jpg").write_bytes(encoded(f"{folder}{number}"))
    found = shard(str(tmp_path / "tree"), tmp_path / "out", val_fraction=0, progress=False)
    train = found.split("train")
    names = [train.sample_name(i) for i in range(4)]
    assert {name[8:] for name in names} >= {
        "-große_Tiere_é_0.jpg in train-000000.tar",
        "-猫_é_1.jpg in train-000000.tar",
    }
    plain = webdataset.WebDataset(str(train.shard_paths[0]), shardshuffle=False)
    assert [sample["__key__"] + ".jpg in train-000000.tar" for sample in plain] == names


def test_manifest_and_index_have_the_documented_form(tree, tmp_path):
    shard(str(tree), tmp_path / "out", val_fraction=0.2, shard_size=SMALL, progress=False)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["format"] == 1 and manifest["name"] == "animals"
    assert manifest["splits"]["train"]["per_class"] == [8, 8, 8]
    assert manifest["splits"]["val"]["per_class"] == [2, 2, 2]
    index = np.load(tmp_path / "out/train.index.npy", mmap_mode="r")
    assert index.dtype == INDEX_DTYPE and len(index) == manifest["splits"]["train"]["samples"] == 24
    assert sum(entry["samples"] for entry in manifest["splits"]["train"]["shards"]) == 24
    assert not (tmp_path / "out/.work").exists()


def test_classes_are_mixed_inside_a_shard(tree, tmp_path):
    found = shard(str(tree), tmp_path / "out", shard_size=SMALL, progress=False)
    train = found.split("train")
    first = train.labels[train.index["shard"] == 0]
    assert set(first) == {0, 1, 2} and list(first) != sorted(first)


def test_number_of_workers_never_changes_a_byte(tree, tmp_path):
    for workers in (1, 3):
        shard(str(tree), tmp_path / str(workers), shard_size=SMALL, workers=workers, progress=False)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


def test_several_processes_write_one_shard_with_the_same_bytes(tree, tmp_path, small_parts, monkeypatch):
    (tree / "ant/ant.3.jpg").write_bytes(b"no image")  # which moves all that follows it
    for workers in (1, 3):
        shard(str(tree), tmp_path / str(workers), workers=workers, progress=False)
    monkeypatch.undo()
    shard(str(tree), tmp_path / "one part", workers=1, progress=False)
    assert contents(tmp_path / "1") == contents(tmp_path / "3") == contents(tmp_path / "one part")
    assert not verify(tmp_path / "3", progress=False)


def test_a_shard_has_the_bytes_that_webdatasets_writer_gives(tree, tmp_path, small_parts):
    from webdataset import TarWriter

    found = shard(str(tree), tmp_path / "out", progress=False)
    train = found.split("train")
    with (tmp_path / "theirs.tar").open("wb") as stream, TarWriter(stream, encoder=False, mtime=0) as writer:
        writer.tarstream.format = tarfile.USTAR_FORMAT
        for i in range(len(train)):
            key = train.sample_name(i).partition(".")[0]
            writer.write({"__key__": key, "jpg": train.read(i), "cls": str(train.labels[i]).encode()})
    assert (tmp_path / "theirs.tar").read_bytes() == (tmp_path / "out/train-000000.tar").read_bytes()


def test_unreadable_images_are_left_out_counted_and_named(tree, tmp_path, capsys):
    whole = (tree / "ant/ant.3.jpg").read_bytes()
    (tree / "ant/ant.3.jpg").write_bytes(whole[: len(whole) // 2])
    (tree / "bee/bee.4.jpg").write_bytes(b"this is not an image")
    (tree / "cow/cow.5.jpg").write_bytes(b"")
    shard(str(tree), tmp_path / "out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert {entry["name"]: entry["reason"] for entry in manifest["skipped"]} == {
        "ant/ant.3.jpg": "OSError: Truncated File Read",
        "bee/bee.4.jpg": "not an image of a known format",
        "cow/cow.5.jpg": "empty file",
    }
    assert sum(sum(split["per_class"]) for split in manifest["splits"].values()) == 27
    assert "left out 3 unreadable images" in capsys.readouterr().err


def test_a_source_without_any_readable_image_is_an_error(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "broken" / name / f"{number}.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of the train images .* e.g. ./..jpg \(not an image of a known format\)"):
        shard(str(tmp_path / "broken"), tmp_path / "out", progress=False)
    assert not list((tmp_path / "out").iterdir()), "the mended source is another one, which this folder can take"


def test_a_bad_checksum_in_a_zip_costs_one_image_not_the_run(tree, tmp_path):
    packed = tmp_path / "animals.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(tree.rglob("*.jpg")):
            archive.write(path, path.relative_to(tree))
    data = bytearray(packed.read_bytes())
    data[data.find((tree / "bee/bee.2.jpg").read_bytes()) + 300] ^= 0xFF
    packed.write_bytes(data)
    shard(str(packed), tmp_path / "out", progress=False)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["skipped"] == [{"name": "bee/bee.2.jpg", "reason": "its checksum in the zip is wrong"}]


def test_a_zip_and_its_unpacked_folder_give_the_same_shards(tree, tmp_path):
    packed = tmp_path / "animals.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in tree.rglob("*.jpg"):
            archive.write(path, Path("top", path.relative_to(tree)))
    shard(str(tree), tmp_path / "from folder", progress=False)
    shard(str(packed), tmp_path / "from zip", progress=False)
    assert contents(tmp_path / "from folder") == contents(tmp_path / "from zip")


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("cat.12.jpg", "00000007-cat_12"),
        ("train/airplane/0001.jpg", "00000007-train_airplane_0001"),
        ("großes Tier/ñ.jpeg", "00000007-großes_Tier_ñ"),
        ("x" * 300 + "end.jpg", "00000007-" + "x" * 77 + "end"),
    ],
)
def test_a_key_has_no_dots_and_names_the_image(name, key):
    assert sample_key(7, name) == key


def test_progress_is_plain_lines_where_there_is_no_terminal(tree, tmp_path, capsys):
    shard(str(tree), tmp_path / "out")
    lines = capsys.readouterr().err
    assert "sharding animals: 30 of 30 images" in lines and "\x1b" not in lines


def test_reading_modules_do_not_import_torch():
    command = (
        "import sys, data.writing.sharding, data.reading.shards, data.writing.verify; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", command], check=True)


def test_only_images_above_the_size_limit_are_encoded_again(tree, tmp_path):
    (tree / "ant/large.jpg").write_bytes(encoded("large", size=(400, 300)))
    found = shard(str(tree), tmp_path / "out", shortest_side=100, val_fraction=0, progress=False)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["shrunk"] == 1
    original = {path.read_bytes() for path in tree.rglob("*.jpg")}
    train = found.split("train")
    changed = [train.read(i) for i in range(len(train)) if train.read(i) not in original]
    assert [Image.open(io.BytesIO(data)).size for data in changed] == [(133, 100)]
    with pytest.raises(UserError, match="other options"):
        shard(str(tree), tmp_path / "out", val_fraction=0, progress=False)


def test_odd_images_are_counted_by_kind(tree, tmp_path, capsys):
    (tree / "ant/c.jpg").write_bytes(encoded("c", mode="CMYK"))
    (tree / "ant/p.png").write_bytes(encoded("p", "PNG", mode="P"))
    (tree / "bee/g.jpg").write_bytes(encoded("g", mode="L"))
    (tree / "bee/cut.jpg").write_bytes(encoded("g")[:-100])
    shard(str(tree), tmp_path / "out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["odd"] == {"cmyk": 1, "grayscale": 1, "palette": 1, "truncated": 1}
    assert "1 cmyk, 1 grayscale" in capsys.readouterr().err


@pytest.mark.parametrize("size", [0, 10**20])
def test_an_impossible_size_of_shards_is_refused(tmp_path, size):
    with pytest.raises(UserError, match="a shard size of .* bytes is not valid: give e.g."):
        shard("digits", tmp_path / "out", shard_size=size, progress=False)
