"""`bigbatch verify` reads everything again and names what is broken."""

import json
import os
import shutil

import numpy as np
import pytest

from data.writing.sharding import shard
from data.writing.verify import verify
from recipes.errors import UserError
from tests.data.pictures import write_tree


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("verify")
    shard(str(write_tree(folder / "animals")), folder / "whole", shard_size=20_000, progress=False)
    return folder / "whole"


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def edit(path, offset: int, new: bytes) -> None:
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(new)


def row(folder, i: int):
    return np.load(folder / "train.index.npy")[i]


def test_a_whole_data_set_has_no_problems(whole):
    assert verify(whole, progress=False) == []


def test_a_flipped_byte_names_its_shard(copy):
    edit(
        copy / "train-000001.tar", int(row(copy, len(np.load(copy / "train.index.npy")) // 2)["offset"]) + 400, b"\xa5"
    )
    problems = verify(copy, progress=False)
    assert any("train-000001.tar" in problem and "checksum" in problem for problem in problems)


def test_a_image_that_no_longer_decodes_is_named(copy):
    first = row(copy, 0)
    edit(copy / "train-000000.tar", int(first["offset"]), bytes(int(first["size"])))
    problems = verify(copy, progress=False)
    assert any(
        "sample 00000000-" in problem and "train-000000.tar" in problem and "decoded" in problem for problem in problems
    )


def test_a_truncated_shard_is_named(copy):
    os.truncate(copy / "train-000000.tar", int(row(copy, 3)["offset"]) + 100)
    problems = verify(copy, progress=False)
    assert any("train-000000.tar" in problem and "bytes" in problem for problem in problems)
    assert any("train-000000.tar" in problem and "samples" in problem for problem in problems)


def test_a_missing_shard_is_named(copy):
    (copy / "val-000000.tar").unlink()
    assert verify(copy, progress=False) == ["shard val-000000.tar cannot be read: No such file or directory"]


def test_a_label_that_differs_from_the_index_is_named(copy):
    index = np.load(copy / "train.index.npy")
    index["label"][2] = (index["label"][2] + 1) % 3
    np.save(copy / "train.index.npy", index)
    problems = verify(copy, progress=False)
    assert any("index train.index.npy" in problem and "checksum" in problem for problem in problems)
    assert any("sample 00000002-" in problem and "the index says" in problem for problem in problems)


def test_an_index_row_that_points_elsewhere_is_named(copy):
    index = np.load(copy / "train.index.npy")
    index["offset"][2] += 512
    np.save(copy / "train.index.npy", index)
    assert any(
        "sample 00000002-" in problem and "not in the index" in problem for problem in verify(copy, progress=False)
    )


def test_wrong_counts_are_named(copy):
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["splits"]["train"]["per_class"][0] += 1
    (copy / "manifest.json").write_text(json.dumps(manifest))
    assert any("per class" in problem for problem in verify(copy, progress=False))


def test_a_missing_or_damaged_index_is_named_and_the_shards_are_still_read(copy):
    (copy / "train.index.npy").write_bytes(b"no index")
    problems = verify(copy, progress=False)
    assert any("train.index.npy" in problem for problem in problems) and not any("shard train" in p for p in problems)


def test_a_folder_without_a_manifest_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="manifest.json"):
        verify(tmp_path, progress=False)
