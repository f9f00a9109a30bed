"""Archives as various programs write them: links, odd names, wrong endings, kinds that are not read."""

import io
import pickle
import sys
import tarfile
import zipfile
from collections import Counter
from pathlib import Path

import pytest

from data.sources.recognition import LabelTables, open_source
from data.writing.sharding import shard
from recipes.errors import UserError
from tests.data.pictures import encoded, write_tree
from tests.data.sources.test_sources import labelled, zipped

IMAGES = {f"{name}/{i}.jpg": encoded(f"{name}{i}") for name in "ab" for i in range(4)}


def tarred(path: Path, links: dict[str, str] | None = None, kind: bytes = tarfile.LNKTYPE, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as tar:
        for name, data in IMAGES.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
        for name, target in (links or {}).items():
            member = tarfile.TarInfo(name)
            member.type, member.linkname = kind, target
            tar.addfile(member)
    return path


def contents(source) -> dict[str, bytes]:
    return {name: source.read(i) for i, name in enumerate(source.listing.names)}


@pytest.mark.parametrize(
    ("kind", "target"),
    [(tarfile.LNKTYPE, "b/{}.jpg"), (tarfile.SYMTYPE, "{}.jpg"), (tarfile.SYMTYPE, "../a/../b/{}.jpg")],
)
def test_a_link_to_another_member_is_that_image_once_more(tmp_path, kind, target):
    path = tarred(tmp_path / "links.tar", {f"b/again{i}.jpg": target.format(i) for i in range(4)}, kind)
    assert contents(open_source(str(path), 0)) == {
        **IMAGES,
        **{f"b/again{i}.jpg": IMAGES[f"b/{i}.jpg"] for i in range(4)},
    }


def test_a_link_out_of_the_archive_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match=r"b/x.jpg in .* is a link to ../secret.jpg, which is not in the archive"):
        open_source(str(tarred(tmp_path / "links.tar", {"b/x.jpg": "../../secret.jpg"}, tarfile.SYMTYPE)), 0)


@pytest.mark.parametrize("prefix", ["./", "/", "data\\", ""])
def test_names_as_zip_programs_write_them(tmp_path, prefix):
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
        for name, data in IMAGES.items():
            member = zipfile.ZipInfo(name)
            member.filename = prefix + (name.replace("/", "\\") if "\\" in prefix else name)
            archive.writestr(member, data)
    assert contents(open_source(str(tmp_path / "odd.zip"), 0)) == IMAGES


def test_a_zip_that_does_not_say_that_its_names_are_utf8(tmp_path):
    with zipfile.ZipFile(tmp_path / "odd.zip", "w") as archive:
        for name, data in IMAGES.items():
            archive.writestr(name.replace("a/", "é/"), data)
    data = bytearray((tmp_path / "odd.zip").read_bytes())
    for magic, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # clear the flag in every header
        at = data.find(magic)
        while at >= 0:
            data[at + place + 1] &= ~0x08
            at = data.find(magic, at + 4)
    (tmp_path / "odd.zip").write_bytes(data)
    assert open_source(str(tmp_path / "odd.zip"), 0).listing.classes == ["b", "é"]


def test_a_later_member_of_the_same_name_counts(tmp_path):
    with zipfile.ZipFile(tmp_path / "twice.zip", "w") as archive, pytest.warns(UserWarning, match="Duplicate"):
        archive.writestr("a/0.jpg", encoded("old"))
        for name, data in IMAGES.items():
            archive.writestr(name, data)
    assert contents(open_source(str(tmp_path / "twice.zip"), 0)) == IMAGES


@pytest.mark.parametrize(
    ("ending", "mode"), [("tar", "w"), ("tar", "w:gz"), ("zip", "w"), ("tar.gz", "w"), ("bin", "w:xz")]
)
def test_the_contents_tell_the_kind_and_not_the_ending(tmp_path, ending, mode):
    assert contents(open_source(str(tarred(tmp_path / f"set.{ending}", mode=mode)), 0)) == IMAGES


def test_a_zip_called_tar(tmp_path):
    path = zipped(write_tree(tmp_path / "tree"), tmp_path / "set.tar")
    assert len(open_source(str(path), 0).listing) == 30


def test_an_archive_that_is_not_read_is_named(tmp_path):
    (tmp_path / "set.zip").write_bytes(b"Rar!\x1a\x07" + bytes(600))
    with pytest.raises(UserError, match="is a rar archive, which is not read: unpack it and give the folder"):
        open_source(str(tmp_path / "set.zip"), 0)


def seven_zipped(path: Path, **options) -> Path:
    py7zr = pytest.importorskip("py7zr")
    with py7zr.SevenZipFile(path, "w", **options) as archive:
        for name, data in IMAGES.items():
            archive.writestr(data, name)
    return path


def test_a_7z_archive(tmp_path):
    source = open_source(str(seven_zipped(tmp_path / "set.7z")), 0)
    assert contents(source) == IMAGES
    assert contents(pickle.loads(pickle.dumps(source))) == IMAGES, "in a process that is not forked"


@pytest.mark.parametrize("case", ["cut", "changed", "encrypted", "link", "py7zr is missing"])
def test_a_7z_archive_that_cannot_be_read_is_one_sentence(tmp_path, monkeypatch, case):
    path = seven_zipped(tmp_path / "set.7z", **({"password": "secret"} if case == "encrypted" else {}))
    data = bytearray(path.read_bytes())
    if case == "cut":
        path.write_bytes(data[:100])
    elif case == "changed":
        data[50] ^= 0xFF
        path.write_bytes(data)
    elif case == "link":
        (tmp_path / "tree").mkdir()
        (tmp_path / "tree/y.jpg").write_bytes(IMAGES["a/0.jpg"])
        (tmp_path / "tree/x.jpg").symlink_to("y.jpg")
        with pytest.importorskip("py7zr").SevenZipFile(path, "w") as archive:
            archive.writeall(tmp_path / "tree", "tree")
    elif "missing" in case:
        monkeypatch.setitem(sys.modules, "py7zr", None)
    expected = {"encrypted": "is encrypted: unpack it", "link": "is a link", "py7zr is missing": "pip install py7zr"}
    with pytest.raises(UserError, match=expected.get(case, "is damaged or the disk is full")):
        open_source(str(path), 0)


@pytest.mark.parametrize("packed", ["zip of zips", "zip of stored zips", "folder of zips", "folder of zip, tar and 7z"])
def test_archives_inside_are_read_like_folders(tmp_path, packed):
    """As people pack their splits: train.zip beside test.zip, each with a folder per class."""
    write_tree(tmp_path / "tree", each=4)
    parts = tmp_path / "parts"
    parts.mkdir()
    zipped(tmp_path / "tree", parts / "train.zip")
    zipped(tmp_path / "tree", parts / "val.zip")
    if "7z" in packed:
        with tarfile.open(parts / "test.tar.gz", "w:gz") as tar:
            tar.add(tmp_path / "tree", ".")
        (parts / "val.zip").unlink()
        with pytest.importorskip("py7zr").SevenZipFile(parts / "val.7z", "w") as archive:
            archive.writeall(tmp_path / "tree", "val")
    source = parts
    if packed.startswith("zip"):
        source = tmp_path / "outer.zip"
        with zipfile.ZipFile(source, "w", zipfile.ZIP_STORED if "stored" in packed else zipfile.ZIP_DEFLATED) as outer:
            for path in parts.iterdir():
                outer.write(path, path.name)
    opened = open_source(str(source), 0.1)
    splits = Counter(split for split, _ in labelled(opened).values())
    assert splits == ({"train": 12, "val": 12, "test": 12} if "7z" in packed else {"train": 12, "val": 12})
    for name, data in contents(opened).items():
        assert data == (tmp_path / "tree" / "/".join(name.split("/")[-2:])).read_bytes()


@pytest.mark.parametrize("inside", ["{}", "images/{}"])
def test_archives_that_are_parts_of_one_data_set_are_not_classes(tmp_path, inside):
    """As large data sets are distributed: numbered parts of images, whose labels are in a table."""
    for number in (1, 2, 3):
        with zipfile.ZipFile(tmp_path / f"images_{number:03d}.zip", "w") as archive:
            for i in range(3):
                archive.writestr(inside.format(f"{number}{i}.jpg"), encoded(f"{number}{i}"))
    with pytest.raises(UserError, match="numbered like parts of one data set and hold no class folders.*--labels"):
        open_source(str(tmp_path), 0)
    rows = "\n".join(f"{number}{i}.jpg,{'ab'[i % 2]}" for number in (1, 2, 3) for i in range(3))
    (tmp_path / "labels.csv").write_text(f"image,label\n{rows}\n")
    assert len(open_source(str(tmp_path), 0, labels=LabelTables((Path("labels.csv"),))).listing) == 9


def test_numbered_archives_with_class_folders_are_read(tmp_path):
    for number in (1, 2):
        with zipfile.ZipFile(tmp_path / f"n{number:03d}.zip", "w") as archive:
            archive.writestr(f"{'ab'[number - 1]}/{number}.jpg", encoded(str(number)))
    assert len(open_source(str(tmp_path), 0).listing) == 2


def write_parts(folder: Path, **parts: str) -> Path:
    """Write zips of a folder ``pets``, which Google Drive has divided; each value lists the images of a part."""
    folder.mkdir()
    for number, paths in parts.items():
        with zipfile.ZipFile(folder / f"pets-20240131T120000Z-{number.removeprefix('part')}.zip", "w") as archive:
            for path in paths.split():
                archive.writestr(f"pets/{path}", encoded(path))
    return folder


def test_the_parts_of_a_google_drive_download_are_one_tree(tmp_path):
    """Each part has some images of each class: the parts are no classes."""
    whole = write_parts(tmp_path / "whole", part001="cat/1.jpg dog/1.jpg", part002="cat/2.jpg dog/2.jpg dog/3.jpg")
    found = open_source(str(whole), 0)
    assert found.listing.classes == ["cat", "dog"] and found.listing.labels.tolist() == [0, 0, 1, 1, 1]
    assert contents(found)["dog/3.jpg"] == encoded("dog/3.jpg")
    splits = write_parts(tmp_path / "splits", part001="train/cat/1.jpg train/dog/1.jpg", part002="val/cat/2.jpg")
    assert sorted(split for split, _ in labelled(open_source(str(splits), 0)).values()) == ["train", "train", "val"]


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        ({"part001": "cat/1.jpg", "part003": "dog/1.jpg"}, "lacks pets-20240131T120000Z-002, a part of one download"),
        ({"part001": "cat/1.jpg", "part002": "cat/1.jpg dog/1.jpg"}, "several archives in .* hold pets/cat/1.jpg"),
    ],
)
def test_a_google_drive_download_that_is_not_whole_is_one_sentence(tmp_path, parts, message):
    with pytest.raises(UserError, match=message):
        open_source(str(write_parts(tmp_path / "set", **parts)), 0)


def test_links_to_nothing_are_counted_and_links_in_a_circle_end(tmp_path):
    write_tree(tmp_path / "tree", each=2)
    (tmp_path / "tree/ant/gone.jpg").symlink_to("../../unmounted/1.jpg")
    (tmp_path / "tree/bee/again").symlink_to("..")
    found = open_source(str(tmp_path / "tree"), 0)
    assert len(found.listing) == 6 and found.notes == ["1 link leads to no file: ant/gone.jpg"]
    for path in (tmp_path / "tree").rglob("*.jpg"):
        if not path.is_symlink():
            path.unlink()
    with pytest.raises(UserError, match="holds no images .*1 link leads to no file: ant/gone.jpg"):
        open_source(str(tmp_path / "tree"), 0)


def test_archives_beside_images_are_named_and_not_read(tmp_path):
    zipped(write_tree(tmp_path / "tree"), tmp_path / "more.zip").rename(tmp_path / "tree/more.zip")
    source = open_source(str(tmp_path / "tree"), 0)
    assert len(source.listing) == 30 and any("1 .zip" in note for note in source.notes)
    assert any("unpack them" in note for note in source.notes)


def test_a_tar_compressed_with_zstandard(tmp_path):
    zstandard = pytest.importorskip("zstandard")
    packed = zstandard.ZstdCompressor().compress(tarred(tmp_path / "set.tar").read_bytes())
    (tmp_path / "set.tar.zst").write_bytes(packed)
    assert contents(open_source(str(tmp_path / "set.tar.zst"), 0)) == IMAGES


def test_a_link_to_a_folder_above_does_not_repeat_the_images(tmp_path):
    write_tree(tmp_path / "tree")
    (tmp_path / "tree/ant/up").symlink_to(tmp_path / "tree")
    assert len(open_source(str(tmp_path / "tree"), 0).listing) == 30


def test_names_that_are_not_utf8_are_written_out(tmp_path):
    write_tree(tmp_path / "tree", ("a", "b"), each=4)
    (tmp_path / "tree/caf\udce9").mkdir()  # a surrogate stands for the byte E9, Latin-1's é
    for i in range(4):
        for folder in ("a", "caf\udce9"):
            (tmp_path / "tree" / folder / f"{i}-\udce9.jpg").write_bytes(b"damaged" if i == 3 else encoded(str(i)))
    found = shard(str(tmp_path / "tree"), tmp_path / "out", val_fraction=0.25)
    assert found.classes == ("a", "b", "caf\\xe9")
    names = [split.sample_name(i) for split in found.splits.values() for i in range(len(split))]
    assert sum("caf_xe9" in name for name in names) == 3
    assert labelled(open_source(str(tmp_path / "tree"), 0.25))["a/0-\udce9.jpg"][1] == "a"


def test_a_name_that_is_not_utf8_in_a_tar(tmp_path):
    with tarfile.open(tmp_path / "set.tar", "w", errors="surrogateescape") as tar:
        for name, data in {**IMAGES, "b/\udce9.jpg": b"damaged"}.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    shard(str(tmp_path / "set.tar"), tmp_path / "out")
    assert "b/\\\\xe9.jpg" in (tmp_path / "out/manifest.json").read_text()
