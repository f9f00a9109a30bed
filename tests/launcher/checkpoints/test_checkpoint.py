"""A checkpoint is whole or not there, and what is damaged is never used."""

import json
import os
import resource
import shutil
import signal
import subprocess
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch

from launcher.checkpoints.checkpoint import DamagedCheckpoint, TensorShard, latest_valid, open_checkpoint
from launcher.checkpoints.retention import Retention
from launcher.checkpoints.writer import CheckpointWriter, new_attempt
from recipes.errors import UserError

ABOUT = {"identity": "identity", "dataset": "dataset"}


def state(step: int, rank: int = 0) -> list[TensorShard]:
    generator = torch.Generator().manual_seed(step)
    names, kinds = (f"a.{rank}", f"b.{rank}"), ("weights", "exp_avg", "ema")
    return [TensorShard(kind, name, torch.randn(100, generator=generator)) for name in names for kind in kinds]


def writer(folder: Path, keep=3, rank=0, world_size=1, attempt="x", resumed_step=None, **retention) -> CheckpointWriter:
    return CheckpointWriter(folder, Retention(keep, **retention), rank, world_size, attempt, resumed_step)


def start_saving(one: CheckpointWriter, step: int, pieces: list[TensorShard], shapes: dict | None = None) -> None:
    one.save(step, pieces, {"updates": step}, shapes or {}, ABOUT)


def save(folder: Path, *steps: int, **options) -> None:
    one = writer(folder, **options)
    for step in steps:
        start_saving(one, step, state(step))
    one.wait()


def steps_in(folder: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step-")) for path in folder.glob("*step-*"))


def damage(*keys: str, value: object = None):
    """Return a function that gives a key of a checkpoint's manifest, inside those before it, a value; None: no key."""

    def change(manifest: dict) -> None:
        for key in keys[:-1]:
            manifest = manifest[key]
        manifest[keys[-1]] = value
        if value is None:
            del manifest[keys[-1]]

    return change


PART = "part-00000-of-00001.safetensors"


@pytest.mark.parametrize(
    "change",
    [
        *(damage(key) for key in ("step", "numbers", "about", "shapes", "files")),
        *(damage(key, value=[]) for key in ("step", "numbers", "about", "shapes", "files", "format")),
        *(damage("about", key) for key in ABOUT),
        damage("step", value=-1),
        damage("step", value="2"),
        damage("numbers", "updates"),
        damage("numbers", "updates", value="2"),
        damage("numbers", "updates", value=float("nan")),
        damage("numbers", "loss_scale", value=1.0),
        damage("about", "identity", value=1),
        damage("shapes", "a.0", value="text"),
        damage("shapes", "a.0", value=[-1]),
        damage("files", value={}),
        damage("files", PART, value=1),
        damage("files", PART, "bytes"),
        damage("files", PART, "sha256"),
        damage("files", "part-00001-of-00002.safetensors", value={"bytes": 1, "sha256": ""}),
        lambda manifest: manifest["files"].update({PART: None}),
    ],
)
def test_a_manifest_that_lacks_something_is_damaged(tmp_path, change):
    save(tmp_path, 2)
    file = tmp_path / "step-00000002" / "checkpoint.json"
    manifest = json.loads(file.read_text())
    change(manifest)
    file.write_text(json.dumps(manifest))
    with pytest.raises(DamagedCheckpoint, match=r"step-00000002 is damaged: its checkpoint\.json cannot be read"):
        open_checkpoint(file.parent)


@pytest.mark.parametrize("shapes", [{}, {"w": [5]}, {"w": [2, 1]}])
def test_a_tensor_that_its_shards_do_not_make_up_is_damaged(tmp_path, shapes):
    one = writer(tmp_path)
    start_saving(one, 1, [TensorShard("weights", "w", torch.ones(4), start=0)], shapes)
    one.wait()
    with pytest.raises(DamagedCheckpoint, match="do not make up weights/w"):
        open_checkpoint(tmp_path / "step-00000001").reader().tensors("weights")


def test_what_is_saved_is_what_is_read(tmp_path):
    save(tmp_path, 7)
    found = latest_valid(tmp_path)
    assert (found.step, found.scalars, found.metadata) == (7, {"updates": 7}, ABOUT)
    saved = found.reader()
    assert saved.kinds == {"weights", "exp_avg", "ema"}
    for kind, name, value, _ in state(7):
        assert torch.equal(saved.tensor(kind, name), value)
        assert torch.equal(saved.tensors(kind)[name], value)
        assert torch.equal(saved.elements(kind, name, 10, 25), value[10:25])


@pytest.mark.parametrize("cuts", [[0, 60], [0, 1, 59, 60], [0, 20, 40, 60], [0, 7, 14, 50, 60]])
def test_a_tensor_written_in_runs_by_several_processes_is_read_whole_or_in_any_other_runs(tmp_path, cuts):
    whole = torch.randn(3, 4, 5)
    parts = list(zip(cuts, cuts[1:]))
    writers = [writer(tmp_path, rank=rank, world_size=len(parts)) for rank in range(len(parts))]
    for one, (start, stop) in zip(writers, parts):
        start_saving(one, 1, [TensorShard("weights", "w", whole.flatten()[start:stop], start)], {"w": [3, 4, 5]})
    for one in writers:
        one.wait()
    saved = latest_valid(tmp_path).reader()
    assert torch.equal(saved.tensor("weights", "w"), whole)
    for start in range(0, 60, 7):
        for stop in range(start + 1, 61, 9):
            assert torch.equal(saved.elements("weights", "w", start, stop), whole.flatten()[start:stop])


def test_training_may_go_on_changing_tensors_while_they_are_written(tmp_path):
    tensor = torch.zeros(1_000_000)
    one = writer(tmp_path)
    start_saving(one, 1, [TensorShard("weights", "a", tensor)])
    tensor.fill_(1)
    one.wait()
    assert latest_valid(tmp_path).reader().tensor("weights", "a").sum() == 0


def test_parts_of_several_processes_become_one_checkpoint(tmp_path):
    attempt = new_attempt()
    writers = [writer(tmp_path, rank=rank, world_size=3, attempt=attempt) for rank in range(3)]
    for rank in (2, 0, 1):
        start_saving(writers[rank], 5, state(5, rank))
    for one in writers:
        one.wait()
    assert sorted(latest_valid(tmp_path).reader().tensors("weights")) == ["a.0", "a.1", "a.2", "b.0", "b.1", "b.2"]


def test_a_checkpoint_without_all_its_parts_gets_no_name(tmp_path):
    first, second = (writer(tmp_path, rank=rank, world_size=2) for rank in (0, 1))
    start_saving(first, 5, state(5, 0))
    assert latest_valid(tmp_path) is None
    start_saving(second, 5, state(5, 1))
    first.wait(), second.wait()
    assert latest_valid(tmp_path).step == 5


def test_the_last_ones_are_kept_and_leftovers_of_a_kill_are_removed(tmp_path):
    save(tmp_path, 1, 2, 3, 4, 5, keep=2)
    assert steps_in(tmp_path) == [4, 5]
    (tmp_path / ".step-00000006-dead").mkdir()
    writer(tmp_path)
    assert not list(tmp_path.glob(".step-*"))


def test_the_best_one_and_milestones_are_kept_too(tmp_path):
    save(tmp_path, *range(1, 13), keep=2, every=5, best=3)
    assert steps_in(tmp_path) == [3, 5, 10, 11, 12]


def test_the_main_process_gives_up_at_once_where_another_could_not_write_its_part(tmp_path):
    first = writer(tmp_path, world_size=2)
    start_saving(first, 5, state(5))
    while not list(tmp_path.glob(".step-*/*.json")):
        time.sleep(0.01)
    (
        next(tmp_path.glob(".step-*")) / "part-00001-of-00002.safetensors"
    ).mkdir()  # so that a file cannot be written there
    second = writer(tmp_path, rank=1, world_size=2)
    start_saving(second, 5, state(5, 1))
    with pytest.raises(UserError, match="could not be written"):
        second.wait()
    with pytest.raises(UserError, match="rank 1 could not write its part"):
        first.wait()
    assert not list(tmp_path.iterdir())


def test_the_main_process_gives_up_at_once_where_the_folder_is_taken_away(tmp_path):
    first = writer(tmp_path, world_size=2)
    start_saving(first, 5, state(5))
    while not list(tmp_path.glob(".step-*/*.json")):
        time.sleep(0.01)
    shutil.rmtree(next(tmp_path.glob(".step-*")))
    with pytest.raises(UserError, match="another process removed the folder"):
        first.wait()
    assert not list(tmp_path.iterdir())


def test_a_process_that_wrote_its_part_does_not_touch_the_folder_again(tmp_path, monkeypatch):
    """The main process renames the folder once all records are there: opening it later ended healthy runs."""
    opened = os.open

    def late(path, flags, *rest, **options):
        if flags == os.O_RDONLY and Path(path).is_dir() and threading.current_thread().name != "checkpoint-0":
            time.sleep(0.05)  # long enough for the main process to be ahead
        return opened(path, flags, *rest, **options)

    monkeypatch.setattr(os, "open", late)
    writers = [writer(tmp_path, rank=rank, world_size=4) for rank in range(4)]
    for step in range(1, 6):
        for rank, one in enumerate(writers):
            start_saving(one, step, state(step, rank))
        for one in writers:
            one.wait()
    assert latest_valid(tmp_path).step == 5


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
        assert latest_valid(tmp_path).step == 1
    save(tmp_path, 2, resumed_step=1)  # the run comes past that step again and writes it anew
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert latest_valid(tmp_path).step == 2


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
    assert latest_valid(tmp_path).step == 1


def test_a_disk_that_became_read_only_is_one_sentence_and_leaves_the_earlier_checkpoint(small_disk):
    save(small_disk, 1)
    subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    with pytest.raises(UserError, match="could not be written.*Read-only") as caught:
        save(small_disk, 2)
    assert "\n" not in str(caught.value)
    assert latest_valid(small_disk).step == 1


def test_a_disk_that_is_really_full_is_one_sentence_and_leaves_the_earlier_checkpoint(small_disk):
    save(small_disk, 1)
    (small_disk / "others").write_bytes(bytes(1_030_000))
    with pytest.raises(UserError, match="could not be written") as caught:
        save(small_disk, 2)
    assert "\n" not in str(caught.value)
    assert steps_in(small_disk) == [1] and latest_valid(small_disk).step == 1


def test_nothing_in_a_checkpoint_is_executed(tmp_path):
    """Parts are safetensors and JSON: there is no pickle to open."""
    threads = threading.active_count()
    save(tmp_path, 1)
    files = {path.suffix for path in (tmp_path / "step-00000001").iterdir()}
    assert files == {".safetensors", ".json"}
    json.loads((tmp_path / "step-00000001" / "checkpoint.json").read_text())
    assert threading.active_count() <= threads, "a writer's thread is left"
