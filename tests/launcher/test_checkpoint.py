"""A checkpoint is whole or not there, and what is damaged is never used."""

import json
import os
import resource
import signal
import threading
import warnings
from pathlib import Path

import pytest
import torch

from launcher.checkpoint import CheckpointWriter, new_attempt, newest_whole, open_checkpoint
from recipes.errors import UserError


def state(step: int, rank: int = 0):
    generator = torch.Generator().manual_seed(step)
    for name in (f"a.{rank}", f"b.{rank}"):
        for kind in ("weights", "exp_avg", "ema"):
            yield kind, name, torch.randn(100, generator=generator)


def writer(folder: Path, keep=3, rank=0, world_size=1, attempt="x", continued_step=None) -> CheckpointWriter:
    return CheckpointWriter(folder, keep, rank, world_size, attempt, continued_step)


def save(folder: Path, *steps: int, **options) -> None:
    one = writer(folder, **options)
    for step in steps:
        one.save(step, step, "identity", "dataset", state(step))
    one.wait()


def test_what_is_saved_is_what_is_read(tmp_path):
    save(tmp_path, 7)
    found = newest_whole(tmp_path)
    assert (found.step, found.updates, found.identity, found.dataset) == (7, 7, "identity", "dataset")
    read = found.read()
    for kind, name, value in state(7):
        assert torch.equal(read[kind][name], value)
    assert found.read({"ema"}).keys() == {"ema"}


def test_training_may_go_on_changing_tensors_while_they_are_written(tmp_path):
    tensor = torch.zeros(1_000_000)
    one = writer(tmp_path)
    one.save(1, 1, "i", "d", [("weights", "a", tensor)])
    tensor.fill_(1)
    one.wait()
    assert newest_whole(tmp_path).read()["weights"]["a"].sum() == 0


def test_parts_of_several_processes_become_one_checkpoint(tmp_path):
    attempt = new_attempt()
    writers = [writer(tmp_path, rank=rank, world_size=3, attempt=attempt) for rank in range(3)]
    for rank in (2, 0, 1):
        writers[rank].save(5, 5, "i", "d", state(5, rank))
    for one in writers:
        one.wait()
    assert sorted(newest_whole(tmp_path).read()["weights"]) == ["a.0", "a.1", "a.2", "b.0", "b.1", "b.2"]


def test_a_checkpoint_without_all_its_parts_gets_no_name(tmp_path):
    first, second = (writer(tmp_path, rank=rank, world_size=2) for rank in (0, 1))
    first.save(5, 5, "i", "d", state(5, 0))
    assert newest_whole(tmp_path) is None
    second.save(5, 5, "i", "d", state(5, 1))
    first.wait(), second.wait()
    assert newest_whole(tmp_path).step == 5


def test_the_last_ones_are_kept_and_leftovers_of_a_kill_are_removed(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, keep=2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-00000004", "step-00000005"]
    (tmp_path / ".step-00000006-dead").mkdir()
    writer(tmp_path)
    assert not list(tmp_path.glob(".step-*"))


def _flip_a_bit(path: Path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: _flip_a_bit(next(path.glob("*.safetensors"))),
        lambda path: os.truncate(next(path.glob("*.safetensors")), 500),
        lambda path: next(path.glob("*.safetensors")).unlink(),
        lambda path: (path / "checkpoint.json").unlink(),
        lambda path: (path / "checkpoint.json").write_text("{"),
    ],
    ids=["flipped bit", "truncated", "missing part", "no manifest", "torn manifest"],
)
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_it_used(tmp_path, damage):
    save(tmp_path, 1, 2)
    damage(tmp_path / "step-00000002")
    with pytest.raises(UserError, match="step-00000002 is damaged") as caught:
        open_checkpoint(tmp_path / "step-00000002")
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match="damaged"):
        assert newest_whole(tmp_path).step == 1
    save(tmp_path, 2, continued_step=1)  # the run comes past that step again and writes it anew
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert newest_whole(tmp_path).step == 2


def test_a_full_disk_is_one_sentence_and_leaves_the_earlier_checkpoint(tmp_path):
    """The limit on the size of a file stands for the full disk: the write fails in the middle in the same way."""
    save(tmp_path, 1)
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(UserError, match="could not be written.*earlier ones are untouched") as caught:
            save(tmp_path, 2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000001"]
    assert newest_whole(tmp_path).step == 1


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    """Parts are safetensors and JSON: there is no pickle to open."""
    save(tmp_path, 1)
    files = {path.suffix for path in (tmp_path / "step-00000001").iterdir()}
    assert files == {".safetensors", ".json"}
    json.loads((tmp_path / "step-00000001" / "checkpoint.json").read_text())
    assert threading.active_count() < 10
