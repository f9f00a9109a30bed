"""WebDataset shards as other tools write them: masks, captions, macOS files, dotted keys, compressed tars, patterns."""

import io
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images.decode import decode
from data.images.inspection import inspect
from data.reading.shards import ShardSet
from data.sources.recognition import open_source
from data.writing.sharding import shard
from data.writing.verify import verify
from recipes.errors import UserError
from tests.data.pictures import encoded
from tests.data.sources.test_webdataset_source import stored

EACH = 12


def write_tar(path: Path, sample, mode: str = "w", count: int = EACH) -> Path:
    """Write a tar of ``sample(i)``, a dictionary of members by name."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as tar:
        for i in range(count):
            for name, data in sample(i).items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                tar.addfile(member, io.BytesIO(data))
    return path


def compress(path: Path) -> None:
    """Compress a file with Zstandard, in two frames, as tools that compress in parallel do."""
    zstandard = pytest.importorskip("zstandard")
    data = path.read_bytes()
    frames = [zstandard.ZstdCompressor().compress(part) for part in (data[:5000], data[5000:])]
    path.write_bytes(b"".join(frames))


def plain(i: int) -> dict[str, bytes]:
    return {f"{i:05d}.jpg": encoded(str(i)), f"{i:05d}.cls": str(i % 2).encode()}


def png(array: np.ndarray) -> bytes:
    found = io.BytesIO()
    Image.fromarray(array).save(found, "PNG")
    return found.getvalue()


@pytest.mark.parametrize("mask", ["png", "seg.png", "mask.jpg"])
def test_the_photograph_is_trained_on_and_not_the_mask_beside_it(tmp_path, capsys, mask):
    def sample(i: int) -> dict[str, bytes]:
        key, blank = f"{i:05d}", png(np.full((30, 40), 255 * (i % 2), np.uint8))
        return {f"{key}.cls": b"01"[i % 2 : i % 2 + 1], f"{key}.jpg": encoded(str(i)), f"{key}.{mask}": blank}

    write_tar(tmp_path / "theirs/train-0.tar", sample)
    found = shard(str(tmp_path / "theirs"), tmp_path / "out", val_fraction=0)
    assert stored(found, "train") == {encoded(str(i)): str(i % 2) for i in range(EACH)}
    assert f"left out 12 .{mask} images beside those used" in capsys.readouterr().err
    assert verify(tmp_path / "out", progress=False) == []


def test_16_bit_images_have_the_same_pixels_in_training_as_in_predict(tmp_path):
    gradient = np.linspace(5000, 60000, 1920).reshape(40, 48).astype(np.uint16)
    write_tar(tmp_path / "theirs/0.tar", lambda i: {f"{i}.png": png(gradient), f"{i}.cls": str(i % 2).encode()})
    found = shard(str(tmp_path / "theirs"), tmp_path / "out", val_fraction=0, progress=False)
    in_training = np.asarray(decode(found.split("train").read(0)))
    in_predict = np.asarray(decode(inspect(png(gradient)).data))
    assert np.array_equal(in_training, in_predict)
    assert in_training.min() == 5000 >> 8 and in_training.max() == 60000 >> 8


def test_img2dataset_with_the_class_as_caption(tmp_path, capsys):
    def sample(i: int) -> dict[str, bytes]:
        caption = "cat" if i % 2 else "dog"
        described = json.dumps({"caption": caption, "url": "x", "key": f"{i:09d}"}).encode()
        return {f"{i:09d}.jpg": encoded(str(i)), f"{i:09d}.json": described, f"{i:09d}.txt": caption.encode()}

    write_tar(tmp_path / "theirs/00000.tar", sample)
    (tmp_path / "theirs/00000_stats.json").write_text("{}")
    (tmp_path / "theirs/00000.parquet").write_bytes(b"")
    found = shard(str(tmp_path / "theirs"), tmp_path / "out", val_fraction=0)
    assert stored(found, "train") == {encoded(str(i)): "cat" if i % 2 else "dog" for i in range(EACH)}
    assert "ignored 2 files beside the shards" in capsys.readouterr().err


def test_a_split_without_labels_is_left_out_and_counted(tmp_path, capsys):
    write_tar(tmp_path / "theirs/train-0.tar", plain)
    write_tar(tmp_path / "theirs/test-0.tar", lambda i: {f"{i:05d}.jpg": encoded(f"test{i}")})
    found = shard(str(tmp_path / "theirs"), tmp_path / "out", val_fraction=0.25)
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 8, "val": 4}
    assert "left out 12 images without a label" in capsys.readouterr().err
    assert verify(tmp_path / "out", progress=False) == []


def test_a_test_shard_is_the_test_split(tmp_path, capsys):
    for split in ("train", "test"):
        write_tar(tmp_path / f"theirs/{split}-0.tar", plain)
    found = shard(str(tmp_path / "theirs"), tmp_path / "out", val_fraction=0.25)
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 8, "val": 4, "test": 12}
    assert "4 training images are the validation split" in capsys.readouterr().err
    assert verify(tmp_path / "out", progress=False) == []


def test_files_that_macos_adds_are_no_samples(tmp_path):
    def sample(i: int) -> dict[str, bytes]:
        return {
            name: data
            for own, content in plain(i).items()
            for name, data in ((f"._{own}", b"\0\5\x16\7"), (own, content))
        }

    write_tar(tmp_path / "theirs/train-0.tar", sample)
    found = shard(str(tmp_path / "theirs"), tmp_path / "out", val_fraction=0, progress=False)
    assert stored(found, "train") == {encoded(str(i)): str(i % 2) for i in range(EACH)}
    assert json.loads((tmp_path / "out/manifest.json").read_text())["skipped"] == []


def test_keys_with_dots_are_samples_of_their_own(tmp_path):
    write_tar(tmp_path / "theirs/0.tar", lambda i: {f"photo.{name}": data for name, data in plain(i).items()})
    found = shard(str(tmp_path / "theirs"), tmp_path / "out", val_fraction=0, progress=False)
    assert stored(found, "train") == {encoded(str(i)): str(i % 2) for i in range(EACH)}
    assert verify(tmp_path / "out", progress=False) == []


@pytest.mark.parametrize("given", ["folder", "file", "pattern"])
@pytest.mark.parametrize("mode", ["w:gz", "w:bz2", "w:xz", "zst", "wrong ending"])
def test_compressed_shards_are_unpacked(tmp_path, capsys, given, mode):
    """Their images, labels and splits are those of the plain shards, and the compressed files are not needed later."""
    name = "train-0.tar" if mode == "wrong ending" else f"train-0.tar.{mode.removeprefix('w:')}"
    tar_mode = {"wrong ending": "w:gz", "zst": "w"}.get(mode, mode)
    path = write_tar(tmp_path / "theirs" / name, plain, tar_mode)
    if mode == "zst":
        compress(path)
    plain_path = write_tar(tmp_path / "plain/train-0.tar", plain)
    source = {"folder": path.parent, "file": path, "pattern": path.parent / "train-{0..0}.*"}[given]
    found = shard(str(source), tmp_path / "out").split("train")
    assert "unpacked 1 compressed shards" in capsys.readouterr().err
    expected = shard(str(plain_path), tmp_path / "expected", progress=False).split("train")
    path.unlink()
    assert [found.read(i) for i in range(len(found))] == [expected.read(i) for i in range(len(expected))]
    assert list(found.labels) == list(expected.labels)
    assert verify(tmp_path / "out", progress=False) == []


@pytest.mark.parametrize("name", ["00000.TAR", "00000.tbz2", "00000.txz", "00000.tgz", "00000.tzst"])
def test_shards_under_every_ending_of_a_tar_are_shards_and_not_classes(tmp_path, name):
    """Else each of them would be a class of its own, named after the file."""
    mode = {".tbz2": "w:bz2", ".txz": "w:xz", ".tgz": "w:gz"}.get(Path(name).suffix, "w")
    for number in range(2):
        path = write_tar(tmp_path / "theirs" / name.replace("00000", f"{number:05d}"), plain, mode)
        if path.suffix == ".tzst":
            compress(path)
    found = shard(str(tmp_path / "theirs"), tmp_path / "out", val_fraction=0, progress=False)
    assert found.classes == ("0", "1") and len(found.split("train")) == 2 * EACH


@pytest.mark.parametrize("beside", ["json", "txt.gz", "npy"])
def test_shards_without_any_label_are_refused_and_not_read_as_a_class_per_tar(tmp_path, beside):
    described = json.dumps({"url": "x", "caption": "a dog"}).encode()
    for number in range(3):
        write_tar(
            tmp_path / f"theirs/{number:05d}.tar", lambda i: {f"{i}.jpg": encoded(str(i)), f"{i}.{beside}": described}
        )
    with pytest.raises(UserError, match=f"WebDataset shards without labels: .* .{beside} .*--labels"):
        shard(str(tmp_path / "theirs"), tmp_path / "out", progress=False)


def test_shards_in_folders_that_are_no_splits_are_refused_or_counted(tmp_path, capsys):
    """Else each folder would be a class. A pattern says that they are meant."""
    for folder in ("a", "b"):
        write_tar(tmp_path / f"theirs/{folder}/0.tar", plain)
    with pytest.raises(UserError, match=r"hold .cls files like WebDataset shards.* need a pattern, e.g."):
        open_source(str(tmp_path / "theirs"), 0)
    found = shard(str(tmp_path / "theirs/*/*.tar"), tmp_path / "out", val_fraction=0, progress=False)
    assert found.classes == ("0", "1") and len(found.split("train")) == 2 * EACH
    for folder in ("train", "val"):
        write_tar(tmp_path / f"theirs/{folder}/0.tar", plain)
    shard(str(tmp_path / "theirs"), tmp_path / "named")
    assert "ignored 2 tars in folders whose names say no split, e.g. a/0.tar" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("labels", "message"),
    [([("0", "1"), ("cat", "dog")], "some shards .* numbers as labels, e.g. 0, and some have names"),
     ([("-1", "0"), ("1", "0")], "has the label -1, which mostly means")],
)  # fmt: skip
def test_labels_of_two_kinds_are_refused(tmp_path, labels, message):
    for number, of_shard in enumerate(labels):

        def sample(i: int, of_shard=of_shard) -> dict[str, bytes]:
            return {f"{i}.jpg": encoded(str(i)), f"{i}.cls": of_shard[i % 2].encode()}

        write_tar(tmp_path / f"theirs/{number}.tar.gz", sample, "w:gz")
    with pytest.raises(UserError, match=message):
        shard(str(tmp_path / "theirs"), tmp_path / "out", val_fraction=0, progress=False)
    (tmp_path / "map.json").write_text('{"0": "cat", "1": "dog", "cat": "cat", "dog": "dog"}')
    found = shard(
        str(tmp_path / "theirs"), tmp_path / "out", val_fraction=0, class_map=tmp_path / "map.json", progress=False
    )
    assert set(found.classes) == {"cat", "dog"}


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_a_damaged_compressed_shard_is_named(tmp_path, ending):
    path = write_tar(tmp_path / f"theirs/train-0.tar.{ending}", plain, "w:gz" if ending == "gz" else "w")
    if ending == "zst":
        compress(path)
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(
        UserError, match=f"train-0.tar.{ending} (cannot be unpacked|is not a whole tar).*download it again"
    ):
        shard(str(path), tmp_path / "out", progress=False)


@pytest.mark.parametrize("first", ["an empty tar", "a sample without a label", "a damaged tar"])
def test_more_than_the_first_sample_of_the_first_tar_is_looked_at(tmp_path, first):
    if first == "a damaged tar":
        write_tar(tmp_path / "theirs/0.tar", plain)
        (tmp_path / "theirs/0.tar").write_bytes(b"damaged" * 1000)
    else:
        write_tar(tmp_path / "theirs/0.tar", lambda i: {"a.jpg": encoded("a")}, count=0 if "empty" in first else 1)
    for number in (1, 2):
        write_tar(tmp_path / f"theirs/{number}.tar", plain)
    if first == "a damaged tar":
        with pytest.raises(UserError, match="0.tar is not a whole tar"):
            shard(str(tmp_path / "theirs"), tmp_path / "out", val_fraction=0, progress=False)
    else:
        assert (
            len(shard(str(tmp_path / "theirs"), tmp_path / "out", val_fraction=0, progress=False).split("train")) == 24
        )


@pytest.mark.parametrize(("pattern", "images"), [("train-{0..1}.tar", 24), ("*-2.tar", 12), ("{train,val}-*.tar", 48)])
def test_braces_and_wildcards(tmp_path, pattern, images):
    for name in ("train-0", "train-1", "train-2", "val-0"):
        write_tar(tmp_path / f"theirs/{name}.tar", plain)
    found = shard(str(tmp_path / "theirs" / pattern), tmp_path / "out", val_fraction=0, progress=False)
    assert sum(map(len, found.splits.values())) == images and found.name == "theirs"


@pytest.mark.parametrize(
    ("pattern", "message"),
    [("train-{0..3}.tar", "there is no .*train-1.tar"), ("none-*.tar", "there is no .*none"), ("{a.tar", "not closed")],
)
def test_a_pattern_that_does_not_fit_is_one_sentence(tmp_path, pattern, message):
    write_tar(tmp_path / "theirs/train-0.tar", plain)
    with pytest.raises(UserError, match=message):
        open_source(str(tmp_path / "theirs" / pattern), 0.1)


def test_shards_that_were_moved_are_named_with_what_to_do(tmp_path):
    write_tar(tmp_path / "theirs/train-0.tar", plain)
    shard(str(tmp_path / "theirs"), tmp_path / "out", val_fraction=0, progress=False)
    (tmp_path / "theirs").rename(tmp_path / "moved")
    with pytest.raises(UserError, match="train-0.tar, to which .* refers.*if it was moved, remake"):
        ShardSet.open(tmp_path / "out")


def test_a_class_whose_images_are_all_undecodable_is_an_error_unless_a_class_map_leaves_it_out(tmp_path):
    def sample(i: int) -> dict[str, bytes]:
        name = ("ant", "bee", "fox")[i % 3]
        return {f"{i}.jpg": b"x" if name == "fox" or i == 0 else encoded(str(i)), f"{i}.cls": name.encode()}

    write_tar(tmp_path / "theirs/0.tar", sample)
    with pytest.raises(UserError, match=r"the class fox of theirs would be without images, .* e.g. \d+.jpg in 0.tar"):
        shard(str(tmp_path / "theirs"), tmp_path / "out", val_fraction=0, progress=False)
    (tmp_path / "map.txt").write_text("ant ant\nbee bee\n")
    options = {"val_fraction": 0, "class_map": tmp_path / "map.txt", "progress": False}
    assert len(shard(str(tmp_path / "theirs"), tmp_path / "out", **options).split("train")) == 7


def test_labels_that_count_from_1_are_said(tmp_path, capsys):
    write_tar(tmp_path / "theirs/0.tar", lambda i: {f"{i}.jpg": encoded(str(i)), f"{i}.cls": str(1 + i % 2).encode()})
    shard(str(tmp_path / "theirs"), tmp_path / "out", val_fraction=0)
    printed = capsys.readouterr().err
    assert "1 class (0) without any image" in printed and "if the labels count from 1, renumber" in printed
