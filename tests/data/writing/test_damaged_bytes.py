"""Random damage, seeded and bounded: never a traceback, never a wrong count, never a hang, whatever the bytes are."""

import hashlib
import json
import random
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest

from data.image_formats import FORMATS
from data.images.inspection import Unreadable, inspect
from data.reading.block_cache import BLOCK, BlockCache
from data.reading.shards import ShardSet
from data.sources.recognition import LabelTables, open_source
from data.writing.sharding import shard
from data.writing.verify import verify
from recipes.errors import UserError
from tests.data.pictures import encoded, write_tree

ROUNDS = 40


def damaged(data: bytes, seed: int) -> bytes:
    """Return the bytes with one of the things that happen to files: bits flipped, a part lost, zeroed or repeated, …"""
    chance = random.Random(seed)
    found, place = bytearray(data), chance.randrange(max(1, len(data)))
    length = chance.choice((1, 2, 8, 64, 512, 4096))
    kind = chance.randrange(7)
    if kind == 0:
        for _ in range(chance.choice((1, 3, 30))):
            found[chance.randrange(len(found))] ^= 1 << chance.randrange(8)
    elif kind == 1:
        del found[place:]
    elif kind == 2:
        found[place : place + length] = bytes(len(found[place : place + length]))
    elif kind == 3:
        found[place:place] = found[place : place + length]
    elif kind == 4:
        found[place:place] = chance.randbytes(length)
    elif kind == 5:
        del found[place : place + length]
    else:
        found = bytearray(chance.randbytes(chance.choice((0, 1, 100, 5000))))
    return bytes(found)


@pytest.mark.parametrize(
    "file_format", ["JPEG", "PNG", "GIF", "WEBP", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "HEIF"]
)
def test_an_image_is_read_or_is_unreadable(file_format):
    if file_format in ("AVIF", "JPEG2000", "HEIF") and file_format not in FORMATS:
        pytest.skip(f"no library here reads {file_format}")
    data = encoded("fuzz", file_format)
    for seed in range(ROUNDS):
        try:
            assert inspect(damaged(data, seed)).extension
        except Unreadable as unreadable:
            assert unreadable.reason and "\n" not in unreadable.reason


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """A zip, a tar, a compressed tar, WebDataset shards and a table of one small data set."""
    folder = tmp_path_factory.mktemp("sources")
    tree = write_tree(folder / "tree", ("a", "b"), each=3)
    for kind in ("zip", "tar", "gztar"):
        shutil.make_archive(str(folder / "set"), kind, tree)
    with tarfile.open(folder / "theirs.tar", "w") as tar:
        for i, path in enumerate(sorted(tree.rglob("*.jpg"))):
            tar.add(path, f"{i}.jpg")
            (folder / "label").write_text(str(i % 2))
            tar.add(folder / "label", f"{i}.cls")
    (folder / "flat").mkdir()
    for i, path in enumerate(sorted(tree.rglob("*.jpg"))):
        shutil.copy(path, folder / f"flat/{i}.jpg")
    (folder / "labels.csv").write_text("image,label\n" + "".join(f"{i}.jpg,{'ab'[i % 2]}\n" for i in range(6)))
    return folder


@pytest.mark.parametrize("name", ["set.zip", "set.tar", "set.tar.gz", "theirs.tar"])
def test_an_archive_gives_its_images_or_one_sentence(sources, tmp_path, name):
    """Every image that is listed is written or named as left out: none disappears."""
    for seed in range(ROUNDS):
        path = tmp_path / f"{seed}" / name
        path.parent.mkdir()
        path.write_bytes(damaged((sources / name).read_bytes(), seed))
        try:
            opened = open_source(str(path), 0)
            found = shard(str(path), tmp_path / f"out{seed}", val_fraction=0, workers=1, progress=False)
        except UserError as error:
            assert "\n" not in str(error)
            continue
        manifest = json.loads((tmp_path / f"out{seed}/manifest.json").read_text())
        written = sum(map(len, found.splits.values()))
        assert written == sum(sum(record["per_class"]) for record in manifest["splits"].values())
        if name != "theirs.tar":
            assert written + len(manifest["skipped"]) == len(opened.listing)


def test_a_table_gives_labels_or_one_sentence(sources, tmp_path):
    for seed in range(3 * ROUNDS):
        (tmp_path / "labels.csv").write_bytes(damaged((sources / "labels.csv").read_bytes(), seed))
        try:
            found = open_source(str(sources / "flat"), 0, labels=LabelTables((tmp_path / "labels.csv",)))
        except UserError as error:
            assert "\n" not in str(error)
        else:
            assert 0 < len(found.listing) <= 6 and len(found.listing.classes) >= 2


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    shard(str(write_tree(folder / "tree", ("a", "b"), each=4)), folder / "out", val_fraction=0.25, progress=False)
    return folder / "out"


@pytest.mark.parametrize("name", ["manifest.json", "train.index.npy", "train-000000.tar"])
def test_a_data_set_is_opened_and_verified_or_refused(whole, tmp_path, name):
    original = (whole / name).read_bytes()
    for seed in range(ROUNDS):
        copy = Path(shutil.copytree(whole, tmp_path / str(seed)))
        (copy / name).write_bytes(damaged(original, seed))
        same = (copy / name).read_bytes() == original
        try:
            found = ShardSet.open(copy)
            for split in found.splits.values():
                for i in range(len(split)):
                    split.read(i)
            assert len(found.split("train")) == 6 or name == "manifest.json"
        except (UserError, OSError):
            assert not same
        if name == "train.index.npy" and not same:
            with pytest.raises(UserError, match="index"):
                ShardSet.open(copy).check_sampled_checksums()
        try:
            problems = verify(copy, progress=False, workers=1)
        except UserError:
            problems = ["refused"]
        # A changed name or count in the manifest that nothing else depends on cannot be noticed.
        assert problems or same or name == "manifest.json"


@pytest.mark.parametrize("size", [BLOCK, 100_000, 2**16])
def test_a_damaged_block_of_the_cache_is_never_misread(tmp_path, size):
    """It is fetched again where the damage touches what is read; the next read then finds it whole."""
    contents = random.Random(0).randbytes(size)
    cache = BlockCache(tmp_path, 2**30, "v")
    cache.read("file", 0, 0, 10, lambda: contents)
    (block,) = (tmp_path / "blocks").iterdir()
    stored = block.read_bytes()
    for seed in range(ROUNDS):
        block.write_bytes(damaged(stored, seed))
        (tmp_path / "locks/used").write_bytes(random.Random(seed).randbytes(seed % 12))
        for start, stop in ((100, 200), (0, size), (size - 300, size), (60_000, 65_536)):
            assert cache.read("file", 0, start, stop, lambda: contents) == contents[start:stop]
        assert block.read_bytes() == stored
        assert cache.read(f"other {seed}", 0, 5, 15, lambda: contents) == contents[5:15]


def test_a_changed_index_in_the_cache_is_fetched_again(tmp_path):
    cache, checksum = BlockCache(tmp_path, 2**30, "v"), hashlib.sha256(b"index").hexdigest()
    path = cache.whole_file("file", checksum, lambda: b"index")
    path.write_bytes(b"indEx")
    assert cache.whole_file("file", checksum, lambda: b"index").read_bytes() == b"index"


def test_a_cache_of_an_early_version_is_not_read(tmp_path):
    """Its blocks had no checksums; they had other names."""
    cache = BlockCache(tmp_path, 2**30, "v")
    (tmp_path / "blocks" / hashlib.sha256(b"v\nfile\n0").hexdigest()[:40]).write_bytes(b"early")
    assert cache.read("file", 0, 0, 5, lambda: b"later") == b"later"


def test_a_zip_bomb_of_one_member_is_not_unpacked_beyond_its_size(tmp_path):
    """The directory says how large a member is; a member that is larger is damaged, and is not held in memory."""
    with zipfile.ZipFile(tmp_path / "bomb.zip", "w", zipfile.ZIP_DEFLATED) as archive:
        for name in ("a/0.jpg", "b/0.jpg"):
            archive.writestr(name, encoded(name))
        archive.writestr("a/1.jpg", bytes(10_000_000))
    data = (
        (tmp_path / "bomb.zip").read_bytes().replace((10_000_000).to_bytes(4, "little"), (1000).to_bytes(4, "little"))
    )
    (tmp_path / "bomb.zip").write_bytes(data)
    found = open_source(str(tmp_path / "bomb.zip"), 0)
    row = list(found.listing.names).index("a/1.jpg")
    with pytest.raises(Unreadable, match="checksum"):
        found.read(row)
