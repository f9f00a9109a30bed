"""Archives as various programs write them: links, odd names, wrong endings, kinds that are not read."""

import io
import tarfile
import zipfile
from pathlib import Path

import pytest

from data.sources import open_source
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


@pytest.mark.parametrize(("start", "kind"), [(b"7z\xbc\xaf\x27\x1c", "7z"), (b"Rar!\x1a\x07", "rar")])
def test_an_archive_that_is_not_read_is_named(tmp_path, start, kind):
    (tmp_path / "set.zip").write_bytes(start + bytes(600))
    with pytest.raises(UserError, match=f"is a {kind} archive, which is not read: unpack it"):
        open_source(str(tmp_path / "set.zip"), 0)


def test_a_zip_of_zips_is_named(tmp_path):
    inner = zipped(write_tree(tmp_path / "tree"), tmp_path / "part.zip")
    with zipfile.ZipFile(tmp_path / "outer.zip", "w") as archive:
        archive.write(inner, "part1.zip")
        archive.write(inner, "part2.zip")
    with pytest.raises(UserError, match=r"ignored 2 files .*2 \.zip.*unpack them"):
        open_source(str(tmp_path / "outer.zip"), 0)


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
