"""What the tests of data share: a small tree of images."""

from pathlib import Path

import pytest

from tests.data.pictures import write_tree


@pytest.fixture
def tree(tmp_path) -> Path:
    """Ten small images in each of the class folders ant, bee and cow."""
    return write_tree(tmp_path / "animals")


@pytest.fixture
def small_parts(monkeypatch) -> None:
    """Make the parts of a shard so small that every shard of the tests has several."""
    monkeypatch.setattr("data.writing.shard_parts._PART_SIZE", 3_000)
