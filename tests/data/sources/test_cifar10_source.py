"""CIFAR-10 as distributed, python and binary; nothing in the pickled version can run."""

import io
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.sources.recognition import open_source
from data.writing.sharding import shard
from data.writing.verify import verify
from recipes.errors import UserError
from tests.data.pictures import contents
from tests.data.sources.test_sources import labelled

CLASSES = ["airplane", "automobile", "bird"]
BATCHES = [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]
ROWS = 4


def batch(number: int) -> tuple[np.ndarray, list[int]]:
    pixels = np.random.default_rng(number).integers(0, 256, (ROWS, 3072), np.uint8)
    return pixels, [(number + row) % 3 for row in range(ROWS)]


class Python2Pickler(pickle._Pickler):
    """Writes byte strings as Python 2 did, which is how the distributed files are written."""

    dispatch = dict(pickle._Pickler.dispatch)

    def save_bytes(self, value):
        self.write(b"T" + len(value).to_bytes(4, "little") + value)

    dispatch[bytes] = save_bytes


def pickled(value, python2: bool) -> bytes:
    stored = io.BytesIO()
    (Python2Pickler if python2 else pickle._Pickler)(stored, protocol=2).dump(value)
    return stored.getvalue().replace(b"numpy._core.multiarray", b"numpy.core.multiarray")


def tarball(path: Path, folder: str, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, data in files.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return path


def python_files(python2: bool = True) -> dict[str, bytes]:
    def text(value: str):
        return value.encode() if python2 else value

    files = {}
    for number, name in enumerate(BATCHES):
        pixels, labels = batch(number)
        files[name] = pickled({text("data"): pixels, text("labels"): labels, text("batch_label"): text(name)}, python2)
    files["batches.meta"] = pickled({text("label_names"): [text(name) for name in CLASSES]}, python2)
    return files


@pytest.fixture
def python_tarball(tmp_path):
    return tarball(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", python_files())


@pytest.fixture
def binary_tarball(tmp_path):
    files = {}
    for number, name in enumerate(BATCHES):
        pixels, labels = batch(number)
        files[f"{name}.bin"] = np.column_stack([np.array(labels, np.uint8), pixels]).tobytes()
    files["batches.meta.txt"] = "\n".join([*CLASSES, ""]).encode()
    return tarball(tmp_path / "cifar-10-binary.tar.gz", "cifar-10-batches-bin", files)


def assert_is_cifar(found):
    assert found.kind == "CIFAR-10" and found.listing.classes == CLASSES
    values = labelled(found)
    assert [split for split, _ in values.values()].count("val") == 3, "one of each class, out of the training images"
    for number, name in enumerate(BATCHES):
        pixels, labels = batch(number)
        for row in range(ROWS):
            split, label = values[f"{name}/{row:05d}"]
            assert label == CLASSES[labels[row]] and (split == "test") == (name == "test_batch")
            i = number * ROWS + row
            image = Image.open(io.BytesIO(found.read(i)))
            assert image.format == "PNG" and image.mode == "RGB"
            assert np.array_equal(np.asarray(image).transpose(2, 0, 1).reshape(-1), pixels[row])


@pytest.mark.parametrize("python2", [True, False])
def test_the_python_version_keeps_every_pixel(tmp_path, python2):
    path = tarball(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", python_files(python2))
    assert_is_cifar(open_source(str(path), 0.1))


def test_the_binary_version_keeps_every_pixel(binary_tarball):
    assert_is_cifar(open_source(str(binary_tarball), 0.1))


def test_the_unpacked_folder_serves_as_well(python_tarball, tmp_path):
    with tarfile.open(python_tarball) as tar:
        tar.extractall(tmp_path / "unpacked", filter="data")
    assert_is_cifar(open_source(str(tmp_path / "unpacked"), 0.1))
    assert_is_cifar(open_source(str(tmp_path / "unpacked/cifar-10-batches-py"), 0.1))


def test_both_versions_give_the_same_shards(python_tarball, binary_tarball, tmp_path):
    for path, out in ((python_tarball, "python"), (binary_tarball, "binary")):
        shard(str(path), tmp_path / out, progress=False)
        assert verify(tmp_path / out, progress=False) == []
    python, binary = contents(tmp_path / "python"), contents(tmp_path / "binary")
    del python["manifest.json"], binary["manifest.json"]  # they differ in the name
    assert python == binary


class Attack:
    def __reduce__(self):
        return os.system, ("touch attacked",)


def attacks() -> dict[str, bytes]:
    objects = np.array([Attack()], dtype=object)
    return {
        "a function": pickled({"data": Attack(), "labels": []}, python2=False),
        "inside an array of objects": pickled({"data": objects, "labels": [0]}, python2=False),
        "a builtin": b"cbuiltins\neval\n(S'1+1'\ntR.",
        "an attribute of what is allowed": b"cnumpy\nndarray.__class__\n(S'x'\ntR.",
        "by the stack's object opcode": b"(cos\nsystem\nS'touch attacked'\no.",
    }


@pytest.mark.parametrize("kind", attacks())
def test_nothing_in_a_pickled_batch_is_executed(tmp_path, monkeypatch, kind):
    monkeypatch.chdir(tmp_path)
    files = python_files() | {"data_batch_3": attacks()[kind]}
    path = tarball(tmp_path / "cifar-10-python.tar.gz", "cifar-10-batches-py", files)
    with pytest.raises(UserError, match="not CIFAR-10 as distributed"):
        open_source(str(path), 0.1)
    assert not (tmp_path / "attacked").exists()


@pytest.mark.parametrize(
    "damage", [b"", b"not a pickle", pickled({"data": 1, "labels": [1]}, False), pickled([1], False)]
)
def test_a_damaged_batch_is_one_sentence(tmp_path, damage):
    path = tarball(tmp_path / "c.tar.gz", "cifar-10-batches-py", python_files() | {"test_batch": damage})
    with pytest.raises(UserError, match="not CIFAR-10 as distributed") as error:
        open_source(str(path), 0.1)
    assert "\n" not in str(error.value)


def test_a_label_that_no_class_has_is_one_sentence(tmp_path):
    bad = pickled({"data": batch(0)[0], "labels": [0, 1, 2, 3]}, python2=False)
    path = tarball(tmp_path / "c.tar.gz", "cifar-10-batches-py", python_files() | {"test_batch": bad})
    with pytest.raises(UserError, match="labels outside 0 to 2"):
        open_source(str(path), 0.1)
