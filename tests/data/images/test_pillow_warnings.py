"""Pillow's warnings name the image and come once per kind, whoever reads the images."""

import io
import mmap
import warnings

import numpy as np
import pytest
from PIL import Image

from data.batches import EvalBatches, MicroBatches
from data.images import pillow_warnings
from data.images.pillow_warnings import named_warnings
from data.reading.shards import ShardSet
from data.writing.sharding import shard
from data.writing.verify import verify
from launcher.evaluation.image_files import load_images
from recipes.load import load
from tests.data.pictures import encoded, write_tree

TAIL = "; the image is read, and this is said only once\n"


@pytest.fixture(autouse=True)
def nothing_was_said(monkeypatch):
    monkeypatch.setattr(pillow_warnings, "_said", mmap.mmap(-1, pillow_warnings._KINDS))
    with warnings.catch_warnings():
        warnings.simplefilter("always")  # Python itself would suppress an equal text
        yield


def palette() -> bytes:
    """Return a PNG whose palette has transparent colours, of which Pillow warns when it becomes RGB."""
    stored = io.BytesIO()
    colours = Image.fromarray(np.arange(1200, dtype=np.uint8).reshape(30, 40))
    colours.convert("P").save(stored, "PNG", transparency=bytes(range(256)))
    return stored.getvalue()


def damaged_exif() -> bytes:
    return encoded("exif", exif=b"Exif\0\0II*\0\x08\0\0\0\x50\0\1\1")


def large(monkeypatch) -> bytes:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 4000)  # instead of 89 million, so that the test is quick
    return encoded("large", size=(80, 60))


def test_shard_and_verify_name_the_first_image_of_each_kind(tmp_path, monkeypatch, capfd):
    tree = write_tree(tmp_path / "tree", each=4)
    for name in ("1.jpg", "2.jpg"):
        (tree / "ant" / name).write_bytes(large(monkeypatch))
        (tree / "bee" / name).write_bytes(damaged_exif())
    found = shard(str(tree), tmp_path / "out", workers=2)
    lines = [line for line in capfd.readouterr().err.splitlines() if line.startswith("warning: ")]
    assert sorted(line.split("/")[0] for line in lines) == ["warning: ant", "warning: bee"]
    assert any("Image size (4800 pixels) exceeds limit" in line for line in lines)
    assert sum(map(len, found.splits.values())) == 16
    assert verify(tmp_path / "out", progress=False, workers=1) == []


def test_training_evaluation_and_predict_name_the_image(tmp_path, capsys):
    tree = write_tree(tmp_path / "tree", each=4)
    (tree / "ant/glass.png").write_bytes(palette())
    found = shard(str(tree), tmp_path / "out", val_fraction=0, progress=False)
    split = ShardSet.open(found.root).split("train")
    recipe = load("demo", ["batch.global=13", "batch.slices=1", "input.size=16"])
    seen = []
    for read in (
        lambda: MicroBatches(split, recipe, 0, 13)[0, 0],
        lambda: EvalBatches(split, recipe, 0, 13, 13)[0],
        lambda: list(load_images([tree / "ant/glass.png"], recipe, 0)),
    ):
        pillow_warnings._said[:] = bytes(pillow_warnings._KINDS)
        read()
        read()
        seen.append(capsys.readouterr().err)
    assert all(text.endswith(TAIL) and text.count("Palette images with Transparency") == 1 for text in seen)
    assert all("glass" in text for text in seen)


def test_other_warnings_are_shown_as_ever():
    with pytest.warns(UserWarning, match="mine"), named_warnings(lambda: "x"):
        warnings.warn("mine", stacklevel=1)
