"""ImageNet as people have it: the tars as distributed, Kaggle's layout, the class tars of 22K; miniatures of each."""

import csv
import io
import tarfile
from pathlib import Path

import numpy as np
import pytest

from data.images.inspection import inspect
from data.sources.recognition import open_source
from data.writing.sharding import shard
from data.writing.verify import verify
from recipes.errors import UserError
from tests.data.pictures import encoded
from tests.data.sources.test_sources import every_image_reads, labelled, zipped

WNIDS = ["n01440764", "n01443537", "n02085620"]
EACH = 5
# The devkit numbers classes in its own order, and lists inner nodes of the tree, which are no classes, behind them.
DEVKIT_IDS = {"n02085620": 1, "n01440764": 2, "n01443537": 3, "n00001740": 4}
VALIDATION = ["n01443537", "n01440764", "n02085620", "n01440764"]


def add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size = len(data)
    tar.addfile(member, io.BytesIO(data))


def class_tar(wnid: str) -> bytes:
    stored = io.BytesIO()
    with tarfile.open(fileobj=stored, mode="w") as tar:
        for number in range(EACH):
            add(tar, f"{wnid}_{number}.JPEG", encoded(f"{wnid}{number}"))
    return stored.getvalue()


def validation_image(number: int) -> bytes:
    return encoded(f"val{number}")


@pytest.fixture
def distributed(tmp_path) -> Path:
    """The three downloads of ILSVRC2012 in one folder."""
    from scipy.io import savemat

    folder = tmp_path / "imagenet"
    folder.mkdir()
    with tarfile.open(folder / "ILSVRC2012_img_train.tar", "w") as tar:
        for wnid in reversed(WNIDS):
            add(tar, f"{wnid}.tar", class_tar(wnid))
    with tarfile.open(folder / "ILSVRC2012_img_val.tar", "w") as tar:
        for number in range(1, len(VALIDATION) + 1):
            add(tar, f"ILSVRC2012_val_{number:08d}.JPEG", validation_image(number))
    fields = [("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O"), ("gloss", "O"), ("num_children", "O")]
    synsets = np.array(
        [(float(number), wnid, "words", "gloss", float(wnid not in WNIDS)) for wnid, number in DEVKIT_IDS.items()],
        fields,
    )
    meta = io.BytesIO()
    savemat(meta, {"synsets": synsets.reshape(-1, 1)})
    with tarfile.open(folder / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", meta.getvalue())
        truth = "".join(f"{DEVKIT_IDS[wnid]}\n" for wnid in VALIDATION).encode()
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", truth)
    return folder


def expected() -> dict[str, tuple[str, str]]:
    found = {f"{wnid}/{wnid}_{number}.JPEG": ("train", wnid) for wnid in WNIDS for number in range(EACH)}
    for number, wnid in enumerate(VALIDATION, 1):
        found[f"val/ILSVRC2012_val_{number:08d}.JPEG"] = ("val", wnid)
    return found


@pytest.mark.parametrize("given", ["folder", "train tar"])
def test_imagenet_as_distributed_is_read_without_unpacking(distributed, given):
    path = distributed if given == "folder" else distributed / "ILSVRC2012_img_train.tar"
    found = open_source(str(path), 0.1)
    assert found.listing.classes == WNIDS, "sorted WordNet ids, as torchvision and timm number them"
    assert labelled(found) == expected()
    for i, name in enumerate(found.listing.names):
        stem = name.rpartition("/")[2].removesuffix(".JPEG")
        wanted = validation_image(int(stem[-8:])) if "_val_" in stem else encoded(stem.replace("_", ""))
        assert found.read(i) == wanted


def test_imagenet_as_distributed_becomes_a_data_set(distributed, tmp_path):
    found = shard(str(distributed), tmp_path / "out", progress=False)
    assert {name: len(split) for name, split in found.splits.items()} == {"train": 15, "val": 4}
    assert verify(tmp_path / "out", progress=False) == []


def test_without_the_validation_tar_images_are_held_out_and_it_is_said(distributed):
    (distributed / "ILSVRC2012_img_val.tar").unlink()
    found = open_source(str(distributed), 0.2)
    assert sum(split == "val" for split, _ in labelled(found).values()) == 3
    assert "held out" in found.listing.notes[0]


def test_without_the_devkit_it_is_one_sentence(distributed):
    (distributed / "ILSVRC2012_devkit_t12.tar.gz").unlink()
    with pytest.raises(UserError, match="devkit_t12.tar.gz is missing"):
        open_source(str(distributed), 0.1)


def test_a_devkit_of_something_else_is_one_sentence(distributed):
    with tarfile.open(distributed / "ILSVRC2012_devkit_t12.tar.gz", "w:gz") as tar:
        add(tar, "ILSVRC2012_devkit_t12/data/meta.mat", b"not a mat file at all")
        add(tar, "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt", b"1\n")
    with pytest.raises(UserError, match="download it again"):
        open_source(str(distributed), 0.1)


def test_a_training_tar_cut_short_is_one_sentence(distributed):
    path = distributed / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(UserError, match="img_train.tar is not a whole tar"):
        open_source(str(distributed), 0.1)


@pytest.fixture
def kaggle(tmp_path) -> Path:
    """The files of Kaggle's imagenet-object-localization-challenge."""
    root = tmp_path / "kaggle"
    images = root / "ILSVRC/Data/CLS-LOC"
    for wnid in WNIDS:
        (images / "train" / wnid).mkdir(parents=True)
        for number in range(EACH):
            (images / "train" / wnid / f"{wnid}_{number}.JPEG").write_bytes(encoded(f"{wnid}{number}"))
    for split in ("val", "test"):
        (images / split).mkdir()
        for number in range(1, len(VALIDATION) + 1):
            (images / split / f"ILSVRC2012_{split}_{number:08d}.JPEG").write_bytes(validation_image(number))
    (root / "ILSVRC/Annotations/CLS-LOC/val").mkdir(parents=True)
    (root / "ILSVRC/Annotations/CLS-LOC/val/ILSVRC2012_val_00000001.xml").write_text("<annotation/>")
    with (root / "LOC_val_solution.csv").open("w", newline="") as table:
        writer = csv.writer(table)
        writer.writerow(["ImageId", "PredictionString"])
        for number, wnid in reversed(list(enumerate(VALIDATION, 1))):
            writer.writerow([f"ILSVRC2012_val_{number:08d}", f"{wnid} 85 1 499 272 {wnid} 1 2 3 4 "])
    return root


@pytest.mark.parametrize("form", ["folder", "zip"])
def test_imagenet_in_kaggles_layout(kaggle, tmp_path, form):
    path = kaggle if form == "folder" else zipped(kaggle, tmp_path / "imagenet.zip")
    found = open_source(str(path), 0.1)
    assert found.kind == "Kaggle ImageNet-1K" and found.listing.classes == WNIDS
    assert labelled(found) == expected()
    assert every_image_reads(found)


def test_the_tars_and_kaggles_layout_are_the_same_data_set(distributed, kaggle):
    assert open_source(str(distributed), 0.1).listing.digest() == open_source(str(kaggle), 0.1).listing.digest()


def test_kaggles_layout_without_its_table_is_one_sentence(kaggle):
    with pytest.raises(UserError, match="not LOC_val_solution.csv"):
        open_source(str(kaggle / "ILSVRC"), 0.1)


@pytest.fixture
def class_tars(tmp_path) -> Path:
    (tmp_path / "in22k").mkdir()
    for wnid in WNIDS:
        (tmp_path / "in22k" / f"{wnid}.tar").write_bytes(class_tar(wnid))
    return tmp_path / "in22k"


def test_imagenet_22k_is_a_folder_of_class_tars(class_tars, tmp_path):
    found = open_source(str(class_tars), 0.2)
    assert found.listing.classes == WNIDS and len(found.listing) == 15
    assert sum(split == "val" for split, _ in labelled(found).values()) == 3
    for i, name in enumerate(found.listing.names):
        assert found.read(i) == encoded(name.partition("/")[2].removesuffix(".JPEG").replace("_", ""))
    out = shard(str(class_tars), tmp_path / "out", val_fraction=0.2, progress=False)
    assert len(out.split("train")) == 12 and verify(tmp_path / "out", progress=False) == []


def test_a_damaged_class_tar_is_named(class_tars):
    path = class_tars / f"{WNIDS[1]}.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(UserError, match=f"{WNIDS[1]}.tar is not a whole tar"):
        open_source(str(class_tars), 0.1)


def test_class_names_come_from_a_class_map(class_tars, tmp_path):
    (tmp_path / "LOC_synset_mapping.txt").write_text("n01440764 tench, Tinca tinca\nn02085620 Chihuahua\n")
    found = open_source(str(class_tars), 0.2, tmp_path / "LOC_synset_mapping.txt")
    assert found.listing.classes == ["tench, Tinca tinca", "Chihuahua"] and len(found.listing) == 10
    assert inspect(found.read(9)).extension == "jpg"
