"""A part of real data sets, in the form in which they are distributed: sharded, verified and trained from."""

import zipfile
from pathlib import Path

import numpy as np
import pytest

from data.writing.sharding import shard
from data.writing.verify import verify
from launcher.runs.run_directory import RunDirectory
from launcher.training.train import StartOptions, train
from recipes.load import load
from tests.launcher.conftest import SMALL

pytestmark = pytest.mark.slow

EVERY = {"cifar10": 100, "dogs-vs-cats": 12}  # image of the archive is taken: 600 and 200


@pytest.fixture(params=EVERY)
def part(request, tmp_path) -> Path:
    whole = request.getfixturevalue({"cifar10": "cifar10_zip", "dogs-vs-cats": "dogs_vs_cats_zip"}[request.param])
    with zipfile.ZipFile(whole) as archive, zipfile.ZipFile(tmp_path / f"{request.param}.zip", "w") as out:
        for name in [name for name in archive.namelist() if name.endswith(".jpg")][:: EVERY[request.param]]:
            out.writestr(name, archive.read(name))
    return tmp_path / f"{request.param}.zip"


def test_from_the_archive_to_an_accuracy(part, tmp_path):
    shards = shard(str(part), tmp_path / "shards", progress=False)
    assert verify(shards.root, progress=False) == []
    with zipfile.ZipFile(part) as archive:
        names = {archive.read(name): name for name in archive.namelist()}
    for split in shards.splits.values():
        for sample, label in enumerate(split.labels):
            name = names.pop(split.read(sample))  # every image once, as it was
            assert shards.classes[label].removesuffix("s") in name
    assert not names

    changes = [
        f"data.path={shards.root}",
        f"data.classes={len(shards.classes)}",
        "input.size=64",
        "schedule.epochs=1",
        "schedule.warmup_epochs=0",
    ]
    assert train(load("demo", [*SMALL, *changes]), tmp_path / "run", StartOptions(workers=1))
    events = RunDirectory(tmp_path / "run").metrics.events()
    steps = [event for event in events if event["event"] == "step"]
    assert len(steps) == len(shards.split("train")) // 64
    assert all(np.isfinite(event["loss"]) and not event["replaced"] for event in steps)
    assert [event["images"] for event in events if event["event"] == "evaluation"] == [len(shards.split("val"))]
