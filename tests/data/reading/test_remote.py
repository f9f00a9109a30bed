"""Reading from a URL gives the same bytes as a folder, transfers only what is needed, and survives a bad connection."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import fsspec
import numpy as np
import pytest
import torch
from PIL import Image

import data.reading.storage
from data.batches import MicroBatches
from data.loader import load_steps
from data.reading.block_cache import BLOCK
from data.reading.shards import ShardSet
from data.writing.sharding import shard
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError
from recipes.load import load
from tests.command_line import run_program
from tests.data.object_store import Line, object_store, upload
from tests.data.pictures import encoded

CACHE = 64 * 2**20
PICTURES = 240


@pytest.fixture(scope="module")
def local(tmp_path_factory) -> Path:
    """Some 11 MB of noisy images, so that blocks are many, in several shards."""
    tree = tmp_path_factory.mktemp("tree") / "animals"
    rng = np.random.default_rng(0)
    for number in range(PICTURES):
        path = tree / ("ant", "bee", "cow")[number % 3] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (150, 150, 3), np.uint8)).save(path, quality=95)
    folder = tree.parent / "shards"
    shard(str(tree), folder, val_fraction=0.1, shard_size=3 * 2**20, progress=False)
    return folder


@pytest.fixture(scope="module")
def store():
    pytest.importorskip("moto.server", reason="the store needs moto[server] and s3fs: pip install 'bigbatch[test]'")
    pytest.importorskip("s3fs")
    with object_store() as (line, environment), pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield line


@pytest.fixture(scope="module")
def line(store, local) -> Line:
    store.url = upload(local, "animals")
    return store


@pytest.fixture(params=["file", "s3"])
def url(request, local) -> str:
    return f"file://{local}" if request.param == "file" else request.getfixturevalue("line").url


@pytest.fixture
def recipe():
    changes = ["batch.global=32", "batch.slices=2", "input.size=32", "schedule.epochs=5", "schedule.warmup_epochs=1"]
    return lambda *more: load("convnext_tiny_in1k", [*changes, *more])


def all_inputs(shards: ShardSet, recipe, workers: int = 2) -> torch.Tensor:
    """Every sample number and pixel of two epochs, in their order."""
    split = shards.split("train")
    dataset = MicroBatches(split, recipe, 0, 16)
    steps = range(2 * dataset.steps_per_epoch)
    loaded = list(load_steps(dataset, steps, 2, workers, pin=False))
    assert not any(batch.replaced for batch in loaded)
    return torch.cat(
        [torch.cat([batch.samples.float()[:, None], batch.pixels[:16].flatten(1).float()], dim=1) for batch in loaded]
    )


@pytest.mark.parametrize("cached", [False, True])
def test_every_image_is_the_same_as_from_the_folder(url, local, tmp_path, cached):
    ours = ShardSet.open(url, tmp_path / "cache" if cached else None, CACHE)
    theirs = ShardSet.open(local)
    assert ours.digest == theirs.digest
    ours.check_sampled_checksums()
    for name, split in theirs.splits.items():
        remote = ours.split(name)
        assert np.array_equal(remote.index, split.index)
        remote.read_ahead(range(0, len(split), 2))
        for sample in range(len(split)):
            assert remote.read(sample) == split.read(sample)
        assert remote.sample_name(3) == split.sample_name(3)


def test_a_web_server_serves_as_well_and_one_that_refuses_is_asked_once(line, local):
    bucket, folder = line.url.removeprefix("s3://").split("/")
    web = f"http://127.0.0.1:{line.port}/{bucket}"
    ours, theirs = ShardSet.open(f"{web}/{folder}"), ShardSet.open(local)
    assert ours.digest == theirs.digest
    ours.check_sampled_checksums()
    remote, split = ours.split("train"), theirs.split("train")
    remote.read_ahead(range(0, len(split), 5))
    assert all(remote.read(sample) == split.read(sample) for sample in range(0, len(split), 5))

    fsspec.filesystem("s3").pipe_file(f"{bucket}/private/manifest.json", b"{}")
    started = time.monotonic()
    with pytest.raises(UserError, match="may not be read.*check the credentials"):
        ShardSet.open(f"{web}/private")
    assert time.monotonic() - started < 10  # without the 18 seconds of trying again


@pytest.mark.slow
@pytest.mark.parametrize("shuffle", ["full", "blocks"])
@pytest.mark.parametrize("cached", [False, True])
def test_training_sees_the_same_as_from_the_folder(url, local, tmp_path, recipe, cached, shuffle):
    chosen = recipe(f"data.shuffle={shuffle}")
    remote = ShardSet.open(url, tmp_path / "cache" if cached else None, CACHE)
    assert torch.equal(all_inputs(remote, chosen), all_inputs(ShardSet.open(local), chosen, workers=0))


@pytest.mark.slow
@pytest.mark.parametrize("cached", [False, True])
def test_connections_cut_in_the_middle_change_nothing(line, local, tmp_path, recipe, cached):
    remote = ShardSet.open(line.url, tmp_path / "cache" if cached else None, CACHE)
    line.cuts = 6
    assert torch.equal(all_inputs(remote, recipe()), all_inputs(ShardSet.open(local), recipe(), workers=0))
    assert line.cuts == 0


def test_only_what_is_asked_for_is_transferred(line):
    """The last image of a shard costs no more than its bytes and a header or two: nothing is read from the start."""
    split = ShardSet.open(line.url).split("train")
    last = int(np.flatnonzero(split.index["shard"] == 0)[-1])
    split.read(0)
    before = line.received
    size = len(split.read(last))
    assert size <= line.received - before < size + 4096


@pytest.mark.slow
def test_a_store_that_stays_away_is_one_sentence_and_no_bad_image(line, recipe, monkeypatch):
    monkeypatch.setattr(data.reading.storage, "_PAUSES", (0.01, 0.02))
    remote = ShardSet.open(line.url)
    batches = load_steps(MicroBatches(remote.split("train"), recipe(), 0, 16), range(2), 2, 1, pin=False)
    line.closed = True
    try:
        with pytest.raises(
            UserError, match=r"^s3://\S+train-\d+.tar could not be read in 3 tries .* give the same command again$"
        ):
            list(batches)
    finally:
        line.closed = False


def test_what_is_in_the_cache_needs_no_store(line, local, tmp_path):
    """A second process, e.g. of the same node, is served from what the first one fetched."""
    first = ShardSet.open(line.url, tmp_path / "cache", CACHE).split("train")
    contents = [first.read(sample) for sample in range(len(first))]
    second = ShardSet.open(line.url, tmp_path / "cache", CACHE).split("train")
    before = line.received
    line.closed = True
    try:
        assert [second.read(sample) for sample in range(len(second))] == contents
    finally:
        line.closed = False
    assert line.received == before


@pytest.mark.slow
def test_processes_that_share_a_cache_fetch_each_block_once(line, tmp_path):
    """Four processes at once ask for everything; hardly more than one data set crosses the line."""
    program = (
        "import sys; from data.reading.shards import ShardSet\n"
        f"split = ShardSet.open({line.url!r}, {str(tmp_path / 'cache')!r}, {CACHE}).split('train')\n"
        "print(sum(len(split.read(sample)) for sample in range(len(split))))"
    )
    before = line.received
    processes = [subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, text=True) for _ in range(4)]
    assert len({process.communicate(timeout=120)[0] for process in processes}) == 1
    assert all(process.returncode == 0 for process in processes)
    shards = sum(path.stat().st_size for path in (tmp_path / "cache" / "blocks").iterdir())
    assert line.received - before < 1.2 * shards


def test_the_cache_keeps_its_limit_and_stays_right(local, tmp_path):
    """A limit below the data: blocks come and go, never more than the limit and one being written."""
    limit = 16 * BLOCK
    big = tmp_path / "big"
    shutil.copytree(local, big)
    remote, theirs = ShardSet.open(f"file://{big}", tmp_path / "cache", limit), ShardSet.open(local)
    sizes = [path.stat().st_size for path in big.glob("*.tar")]
    for name, split in theirs.splits.items():
        for sample in range(len(split)):
            assert remote.split(name).read(sample) == split.read(sample)
    remote.folder.cache.limit = limit // 4  # as if started again with less room
    for sample in range(0, len(theirs.split("train")), 3):
        assert remote.split("train").read(sample) == theirs.split("train").read(sample)
        assert sum(path.stat().st_size for path in (tmp_path / "cache" / "blocks").iterdir()) <= limit
    remote.folder.cache._keep(tmp_path / "cache" / "blocks" / "one more", bytes(BLOCK))
    assert sum(path.stat().st_size for path in (tmp_path / "cache" / "blocks").iterdir()) <= limit // 4
    assert sum(sizes) > limit // 4


def test_another_version_of_the_data_set_is_other_blocks(local, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(local, copy)
    before = ShardSet.open(f"file://{copy}", tmp_path / "cache", CACHE).split("train")
    before.read(0)
    shutil.rmtree(copy)
    tree = tmp_path / "tree"
    for number in range(6):
        path = tree / ("ant", "bee")[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(encoded(str(number)))
    shard(str(tree), copy, val_fraction=0, progress=False)
    after = ShardSet.open(f"file://{copy}", tmp_path / "cache", CACHE).split("train")
    assert after.read(0) == ShardSet.open(copy).split("train").read(0)


@pytest.mark.parametrize(
    "where, message",
    [
        ("file://{}/none", "has no manifest.json"),
        ("nosuchprotocol://{}", "cannot be read"),
    ],
)
def test_a_url_without_a_data_set_is_one_sentence(where, message, tmp_path):
    with pytest.raises(UserError, match=message):
        ShardSet.open(where.format(tmp_path))


def test_a_shard_missing_or_of_another_size_in_the_store_is_one_sentence(local, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(local, copy)
    with (copy / "train-000001.tar").open("ab") as file:
        file.write(b"x")
    with pytest.raises(UserError, match="train-000001.tar has .* bytes instead of"):
        ShardSet.open(f"file://{copy}")
    (copy / "train-000001.tar").unlink()
    with pytest.raises(UserError, match="train-000001.tar cannot be read"):
        ShardSet.open(f"file://{copy}")


@pytest.mark.parametrize("remote", [False, True])
def test_a_shard_that_changed_at_equal_size_is_noticed_before_training(local, tmp_path, remote):
    """A copy that was begun and never finished: the size is there, the end is empty."""
    copy = tmp_path / "copy"
    shutil.copytree(local, copy)
    path = copy / "train-000001.tar"
    size = path.stat().st_size
    os.truncate(path, size // 2)
    os.truncate(path, size)
    opened = ShardSet.open(f"file://{copy}" if remote else copy)
    with pytest.raises(UserError, match="train-000001.tar changed since its manifest was written"):
        opened.check_sampled_checksums()
    checked = [number for number in range(3) if not _changed(opened, number)]
    assert len(checked) == 2  # of three processes, one looks at that shard


def _changed(opened: ShardSet, part: int) -> bool:
    try:
        opened.check_sampled_checksums(part, 3)
    except UserError:
        return True
    return False


@pytest.mark.slow
def test_a_run_trains_from_the_store_as_from_the_folder(line, local, tmp_path):
    """The whole command, connections cut in the middle, with a cache: the same losses."""
    changes = ["model.name=test_convnext", "data.classes=3", "batch.global=64", "batch.slices=4"]
    changes += ["schedule.epochs=2", "schedule.warmup_epochs=0"]
    losses = []
    for where, extra in ((str(local), []), (line.url, [f"data.cache={tmp_path / 'cache'}", "data.cache_gib=0.1"])):
        run = tmp_path / f"run{len(losses)}"
        line.cuts = 3 if extra else 0
        options = ["--data", where, "--run-dir", str(run), "--workers", "1"]
        done = run_program("train", "demo", *changes, *extra, *options)
        assert done.returncode == 0, done.stdout + done.stderr
        losses.append([event["loss"] for event in RunDirectory(run).metrics.events() if event["event"] == "step"])
    assert line.cuts == 0 and len(losses[0]) == 6
    assert losses[0] == losses[1]
