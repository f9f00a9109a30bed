"""The summary of WebDataset shards says which member gave the labels, counts the others, and counts disagreement."""

import json
from pathlib import Path

import pytest

from data.writing.sharding import shard
from tests.data.pictures import encoded
from tests.data.sources.test_foreign_shards import write_tar

EACH = 6


def printed(tmp_path: Path, capsys, members) -> str:
    """Shard two tars of ``members(i)``, label members by ending, and return the summary."""
    for number in range(2):

        def sample(i: int, start: int = number * EACH) -> dict[str, bytes]:
            i += start
            texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in members(i).items()}
            return {f"{i:03d}.jpg": encoded(str(i)), **{f"{i:03d}.{key}": one.encode() for key, one in texts.items()}}

        write_tar(tmp_path / f"theirs/{number}.tar", sample, count=EACH)
    shard(str(tmp_path / "theirs"), tmp_path / "out", val_fraction=0)
    return " ".join(capsys.readouterr().err.split())


def test_the_member_that_gave_the_labels_is_named_and_the_others_are_counted(tmp_path, capsys):
    found = printed(tmp_path, capsys, lambda i: {"cls": str(i % 2), "txt": f"picture {i}", "json": {"width": 9}})
    assert "labels from .cls " in found and "contradicts" not in found
    assert "left out 12 .txt members" in found and "left out 12 .json members" in found


def test_labels_of_two_members_are_counted(tmp_path, capsys):
    found = printed(tmp_path, capsys, lambda i: {"txt": "cat"} if i < 4 else {"json": {"class_name": "dog"}})
    assert "labels from .json (8 images), .txt (4 images)" in found and "left out" not in found


@pytest.mark.parametrize(
    ("members", "count", "example"),
    [
        (lambda i: {"cls": str(i % 2), "json": {"label": 1 - i % 2}}, 12, ".cls says 0 and .json says 1"),
        (lambda i: {"cls": str(i % 2), "json": {"label": i % 2 + (i == 7)}}, 1, "007.jpg in 1.tar: .cls says 1"),
        (lambda i: {"cls": str(i % 2), "txt": str(i % 2 + (i == 7))}, 1, ".cls says 1 and .txt says 2"),
        (
            lambda i: {"cls": "ab"[i % 2], "json": {"category": "ab"[(i == 7) ^ i % 2]}},
            1,
            ".cls says b and .json says a",
        ),
        (
            lambda i: {"cls": str(i % 2), "json": {"class_name": "ab"[(i == 7) ^ i % 2]}},
            1,
            ".cls says 1 and .json says a",
        ),
    ],
)
def test_members_that_contradict_each_other_are_counted(tmp_path, capsys, members, count, example):
    found = printed(tmp_path, capsys, members)
    assert f"in {count} samples " in found and example in found


@pytest.mark.parametrize(
    "members",
    [
        lambda i: {"cls": str(i % 2), "json": {"label": i % 2, "class_name": "ab"[i % 2]}},
        lambda i: {"cls": str(i % 2), "json": {"class_name": "ab"[i % 2]}},
        lambda i: {"cls": f"{i % 2:02d}", "json": {"label": i % 2}},
        lambda i: {"cls": "ab"[i % 2], "json": {"label": i % 2, "class_name": "ab"[i % 2]}, "txt": "a photo"},
        lambda i: {"cls": "ab"[i % 2], "json": {"synset": ("n01", "n02")[i % 2]}},
    ],
)
def test_two_ways_to_write_a_class_do_not_contradict_each_other(tmp_path, capsys, members):
    assert "contradicts" not in printed(tmp_path, capsys, members)
