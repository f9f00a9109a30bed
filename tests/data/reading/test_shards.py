"""Shards that `bigbatch shard` wrote are opened and read back, and a damaged data set is one sentence."""

import os
import pickle
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

import numpy as np
import pytest

from data.reading.shards import INDEX_DTYPE, ShardSet
from data.writing.sharding import shard
from recipes.errors import UserError
from tests.data.pictures import encoded


def test_a_split_reads_the_same_after_a_fork_and_after_a_pickle(tree, tmp_path):
    train = shard(str(tree), tmp_path / "out", shard_size=40_000, progress=False).split("train")
    expected = [train.read(i) for i in range(len(train))]
    pickled = pickle.dumps(train)
    assert len(pickled) < 5_000, "the index must not travel"
    assert [pickle.loads(pickled).read(i) for i in range(len(train))] == expected
    with ProcessPoolExecutor(2, mp_context=get_context("fork")) as pool:
        assert list(pool.map(train.read, range(len(train)))) == expected


def test_more_shards_than_open_files_allowed_can_be_read(tree, tmp_path):
    train = shard(str(tree), tmp_path / "out", shard_size=1, progress=False).split("train")
    assert len(train.shard_paths) == len(train) == 27
    train.folder._open._most = 3
    assert len({train.read(i) for _ in range(2) for i in range(len(train))}) == 27
    assert len(train.folder._open._files) == 3


def test_digest_is_the_identity_of_the_contents(tree, tmp_path):
    one = shard(str(tree), tmp_path / "1", progress=False)
    same = shard(str(tree), tmp_path / "2", progress=False)
    (tree / "ant/ant.0.jpg").write_bytes(encoded("changed"))
    other = shard(str(tree), tmp_path / "3", progress=False)
    assert one.digest == same.digest == ShardSet.open(tmp_path / "1").digest != other.digest


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "manifest.json").unlink(), "bigbatch shard"),
        (lambda folder: (folder / "manifest.json").write_text("{"), "damaged"),
        (lambda folder: (folder / "train-000000.tar").unlink(), "train-000000.tar"),
        (lambda folder: os.truncate(folder / "train-000000.tar", 1000), "has 1000 bytes instead of"),
        (lambda folder: (folder / "train.index.npy").unlink(), "train.index.npy"),
        (lambda folder: os.truncate(folder / "train.index.npy", 300), "train.index.npy"),
        (lambda folder: np.save(folder / "train.index.npy", np.zeros(3, INDEX_DTYPE)), "3 rows"),
    ],
)
def test_opening_a_damaged_data_set_is_one_sentence(tree, tmp_path, damage, message):
    shard(str(tree), tmp_path / "out", progress=False)
    damage(tmp_path / "out")
    with pytest.raises(UserError, match=message) as error:
        ShardSet.open(tmp_path / "out")
    assert "\n" not in str(error.value)


def test_opening_nothing_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="there is no folder .*bigbatch shard"):
        ShardSet.open(tmp_path / "nowhere")
    (tmp_path / "images.zip").touch()
    with pytest.raises(UserError, match="images.zip is a file, not a folder of shards: .*bigbatch shard"):
        ShardSet.open(tmp_path / "images.zip")


def test_an_unknown_split_is_one_sentence(tree, tmp_path):
    with pytest.raises(UserError, match="no split 'test', only 'train', 'val'"):
        shard(str(tree), tmp_path / "out", progress=False).split("test")
