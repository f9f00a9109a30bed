"""torchvision's data sets: those of files keep their files, those of arrays become PNG."""

import io

import numpy as np
import pytest
from PIL import Image

from data.images.inspection import inspect
from data.sources.recognition import open_source
from data.writing.sharding import shard
from data.writing.verify import verify
from recipes.errors import UserError
from tests.data.pictures import encoded, write_tree
from tests.data.sources.test_sources import labelled


@pytest.fixture
def flowers(tmp_path):
    """A miniature of Flowers102 as torchvision lays it out; numbers in its tables count from 1."""
    from scipy.io import savemat

    (tmp_path / "flowers-102/jpg").mkdir(parents=True)
    for number in range(1, 13):
        (tmp_path / f"flowers-102/jpg/image_{number:05d}.jpg").write_bytes(encoded(f"flower{number}"))
    savemat(tmp_path / "flowers-102/imagelabels.mat", {"labels": [[1 + number % 3 for number in range(12)]]})
    splits = {"trnid": [[1, 2, 3, 4, 5, 6]], "valid": [[7, 8, 9]], "tstid": [[10, 11, 12]]}
    savemat(tmp_path / "flowers-102/setid.mat", splits)
    return tmp_path


def test_a_set_of_files_keeps_its_files_and_its_validation_split(flowers, tmp_path, monkeypatch):
    from torchvision import datasets

    monkeypatch.setattr(datasets.Flowers102, "_check_integrity", lambda self: True)  # of the real tables' checksums
    found = open_source(f"torchvision:Flowers102:{flowers}", 0.5)
    values = labelled(found)
    assert [split for split, _ in values.values()] == ["train"] * 6 + ["val"] * 3 + ["test"] * 3
    names = list(found.listing.names)
    assert names[0] == "flowers-102/jpg/image_00001.jpg"
    assert all(found.read(i) == encoded(f"flower{i + 1}") for i in range(12))
    assert found.listing.labels.tolist() == [0, 1, 2] * 4
    shard(f"torchvision:Flowers102:{flowers}", tmp_path / "out", progress=False)
    assert verify(tmp_path / "out", progress=False) == []


def test_a_set_of_arrays_becomes_png(tmp_path):
    """MNIST's own file format, in miniature."""
    raw = tmp_path / "MNIST/raw"
    raw.mkdir(parents=True)
    pixels = {}
    for prefix, count in (("train", 6), ("t10k", 3)):
        images = np.random.default_rng(count).integers(0, 256, (count, 28, 28), np.uint8)
        header = np.array([2051, count, 28, 28], ">i4").tobytes()
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(header + images.tobytes())
        labels = np.arange(count, dtype=np.uint8) % 10
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(np.array([2049, count], ">i4").tobytes() + labels.tobytes())
        pixels[prefix] = images
    found = open_source(f"torchvision:MNIST:{tmp_path}", 0.5)
    assert found.listing.classes[3] == "3 - three"
    assert found.listing.splits.tolist() == [0] * 6 + [2] * 3, "each class has one training image, so none is held out"
    assert found.listing.labels.tolist() == [0, 1, 2, 3, 4, 5, 0, 1, 2]
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(found.read(7)))), pixels["t10k"][1])


def test_a_set_without_splits_has_images_held_out(tmp_path):
    write_tree(tmp_path / "eurosat/2750")
    found = open_source(f"torchvision:EuroSAT:{tmp_path}", 0.2)
    assert found.listing.classes == ["ant", "bee", "cow"]
    assert sum(split == "val" for split, _ in labelled(found).values()) == 6
    assert inspect(found.read(0)).extension == "jpg"


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision:", "is not of the form"),
        ("torchvision:MNIST", "is not of the form"),
        ("torchvision:Flower102:/nowhere", "has no data set 'Flower102'"),
        ("torchvision:VisionDataset:/nowhere", "has no data set 'VisionDataset'"),
        ("torchvision:os:/nowhere", "has no data set"),
        ("torchvision:MovingMNIST:{here}", "does not give each image one class|cannot open"),
        ("torchvision:MNIST:/nowhere", "cannot open MNIST in /nowhere .*download it there first"),
    ],
)
def test_what_torchvision_cannot_give_is_one_sentence(tmp_path, source, message):
    with pytest.raises(UserError, match=message) as error:
        open_source(source.format(here=tmp_path), 0.1)
    assert "\n" not in str(error.value)


def test_a_set_of_pairs_is_no_classification(tmp_path, monkeypatch):
    from torchvision import datasets

    class Pairs(datasets.VisionDataset):
        def __init__(self, root):
            super().__init__(root)

        def __len__(self):
            return 3

        def __getitem__(self, i):
            return "not an image", "not a class"

    monkeypatch.setattr(datasets, "FakeData", Pairs)
    with pytest.raises(UserError, match="does not give each image one class"):
        open_source(f"torchvision:FakeData:{tmp_path}", 0.1)
