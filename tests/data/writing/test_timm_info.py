"""timm's own WebDataset reader reads our shards from their folder alone, without a size or a pattern."""

import json

import pytest
from timm.data.readers.reader_wds import ReaderWds

from data.reading.shards import ShardSet
from data.writing.sharding import shard


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("digits") / "shards"
    shard("digits", folder, val_fraction=0.2, shard_size=2**20, progress=False)
    return folder


@pytest.mark.parametrize("split, ours", [("train", "train"), ("val", "val"), ("validation", "val")])
def test_timm_knows_files_and_sizes_of_every_split(digits, split, ours):
    expected = ShardSet.open(digits).split(ours)
    reader = ReaderWds(str(digits), split=split, is_training=False, batch_size=1)
    assert len(reader) == reader.num_samples == len(expected)
    labels = [target for _, target in reader]
    assert sorted(labels) == sorted(expected.labels.tolist())


def test_the_lengths_of_the_files_add_up(digits):
    for split in json.loads((digits / "_info.json").read_text())["splits"].values():
        assert sum(split["shard_lengths"]) == split["num_samples"]
        assert len(split["shard_lengths"]) == len(split["filenames"])
        assert all((digits / file).is_file() for file in split["filenames"])
