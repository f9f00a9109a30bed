"""Shards copied to a node's own disk: checked, shared by its processes, and resumed."""

import multiprocessing
import shutil

import pytest

from data.reading.shards import ShardSet
from data.reading.staging import stage
from data.writing.sharding import shard
from recipes.errors import UserError


@pytest.fixture(scope="module")
def source(tmp_path_factory):
    folder = tmp_path_factory.mktemp("source") / "digits"
    shard("digits", folder, val_fraction=0.2, shard_size=2**20, progress=False)
    return folder


def test_the_copy_is_the_same_data_set_and_is_made_once(source, tmp_path):
    staged = stage(source, tmp_path)
    original, copy = ShardSet.open(source), ShardSet.open(staged)
    assert copy.digest == original.digest
    assert [copy.split("train").read(i) for i in range(9)] == [original.split("train").read(i) for i in range(9)]
    assert all(path.parent == staged for path in copy.split("train").shard_paths)
    times = {path: path.stat().st_mtime_ns for path in staged.iterdir() if path.name != "lock"}
    assert stage(source, tmp_path) == staged
    assert {path: path.stat().st_mtime_ns for path in times} == times


def test_processes_of_a_node_share_one_copy(source, tmp_path):
    with multiprocessing.get_context("fork").Pool(4) as pool:
        staged = pool.starmap(stage, [(source, tmp_path)] * 4)
    assert len(set(staged)) == 1 and not list(staged[0].glob("*.partial"))
    ShardSet.open(staged[0])


def test_an_interrupted_copy_resumes_at_the_file_it_had_reached(source, tmp_path):
    staged = stage(source, tmp_path)
    *kept, last = sorted(staged.glob("train-*.tar"))
    times = [path.stat().st_mtime_ns for path in kept]
    last.rename(last.with_name(f"{last.name}.partial"))  # as a kill in the middle of it leaves things
    (staged / "manifest.json").unlink()
    assert stage(source, tmp_path) == staged
    assert [path.stat().st_mtime_ns for path in kept] == times and last.is_file()
    assert ShardSet.open(staged).digest == ShardSet.open(source).digest


def test_a_damaged_shard_is_not_copied(source, tmp_path):
    damaged = tmp_path / "damaged"
    shutil.copytree(source, damaged)
    file = next(damaged.glob("val-*.tar"))
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    with pytest.raises(UserError, match="bigbatch verify"):
        stage(damaged, tmp_path / "disk")
    assert not list((tmp_path / "disk").rglob("manifest.json"))


def test_a_disk_that_is_too_small_is_refused(source, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: type("Usage", (), {"free": 1000}))
    with pytest.raises(UserError, match="GB free and the shards need"):
        stage(source, tmp_path)
