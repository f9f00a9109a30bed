"""What `bigbatch shard` finds in its folder: unfinished work is resumed or refused, and other files are left alone."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from data.writing.sharding import shard
from recipes.errors import UserError
from tests.data.pictures import contents, encoded


def test_a_full_disk_leaves_no_unfinished_part(tree, tmp_path, small_parts, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("data.writing.shard_writing.flush", full)
    with pytest.raises(UserError, match="No space left on device; the same command resumes"):
        shard(str(tree), tmp_path / "out", workers=2, progress=False)
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} == {"plan.json", "lock"}


@pytest.mark.parametrize("record", ["", "{}", "[]", '{"bytes"', "[" * 100_000], ids=str.__len__)
def test_a_shard_whose_record_is_damaged_is_written_again(tree, tmp_path, monkeypatch, record):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(UserError):  # after the shards, before the index
        patch.setattr("data.writing.split_writing.flush", full)
        shard(str(tree), tmp_path / "out", progress=False)
    (tmp_path / "out/.work/train-000000.tar.json").write_text(record)
    shard(str(tree), tmp_path / "out", progress=False)
    shard(str(tree), tmp_path / "undisturbed", progress=False)
    assert contents(tmp_path / "out") == contents(tmp_path / "undisturbed")


@pytest.mark.slow
def test_killed_in_the_middle_and_restarted_gives_identical_bytes(dogs_vs_cats_zip, tmp_path):
    """kill -9 of the command, at a moment when some shards are done and others half-written, twice."""
    command = (
        "import sys; from pathlib import Path; from data.writing.sharding import shard;"
        "shard(sys.argv[1], Path(sys.argv[2]), shard_size=4_000_000, workers=2, progress=False)"
    )
    arguments = [sys.executable, "-c", command, str(dogs_vs_cats_zip)]
    killed = tmp_path / "killed"
    for finished_shards in (2, 9):
        process = subprocess.Popen([*arguments, str(killed)])
        while len(list(killed.glob(".work/*.json"))) < 1 + finished_shards:  # one of them is the plan
            assert process.poll() is None, "ended before it was killed"
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not (killed / "manifest.json").exists()
        kept = {path: path.stat().st_mtime_ns for path in killed.glob("*.tar")}
    subprocess.run([*arguments, str(killed)], check=True)
    subprocess.run([*arguments, str(tmp_path / "undisturbed")], check=True)
    assert contents(killed) == contents(tmp_path / "undisturbed")
    unchanged = [path for path, written in kept.items() if path.stat().st_mtime_ns == written]
    assert len(unchanged) >= 9, "finished shards were made again"


def test_workers_of_a_killed_command_end_by_themselves(dogs_vs_cats_zip, tmp_path):
    command = (
        "import sys; from pathlib import Path; from data.writing.sharding import shard;"
        "shard(sys.argv[1], Path(sys.argv[2]), workers=2, shard_size=8_000_000, progress=False)"
    )
    process = subprocess.Popen([sys.executable, "-c", command, str(dogs_vs_cats_zip), str(tmp_path / "out")])
    workers: set[int] = set()
    while len(workers) < 2:
        assert process.poll() is None
        workers = {int(path.name.split(".")[-2]) for path in (tmp_path / "out/.work").glob("*.part*.[0-9]*.partial")}
        time.sleep(0.01)
    process.kill()
    process.wait()
    deadline = time.monotonic() + 5
    while any(_runs(pid) for pid in workers):
        assert time.monotonic() < deadline, "a worker goes on without its parent"
        time.sleep(0.05)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def test_an_existing_data_set_of_the_same_source_is_left_alone(tree, tmp_path, capsys):
    shard(str(tree), tmp_path / "out", progress=False)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}
    shard(str(tree), tmp_path / "out")
    assert "complete" in capsys.readouterr().err
    assert before == {path: path.stat().st_mtime_ns for path in (tmp_path / "out").iterdir()}


def test_an_existing_data_set_of_another_source_or_other_options_is_refused(tree, tmp_path):
    shard(str(tree), tmp_path / "out", progress=False)
    with pytest.raises(UserError, match="another source or other options"):
        shard(str(tree), tmp_path / "out", val_fraction=0.3, progress=False)
    (tree / "ant" / "new.jpg").write_bytes(encoded("new"))
    with pytest.raises(UserError, match="another source or other options"):
        shard(str(tree), tmp_path / "out", progress=False)


@pytest.mark.parametrize("claim", ["{}", "", "{", "[" * 100_000], ids=["other", "empty", "cut short", "nested"])
def test_unfinished_work_of_other_options_is_refused(tree, tmp_path, claim):
    (tmp_path / "out/.work").mkdir(parents=True)
    (tmp_path / "out/.work/plan.json").write_text(claim)
    with pytest.raises(UserError, match="unfinished shards of another source"):
        shard(str(tree), tmp_path / "out", progress=False)


def test_a_folder_with_other_files_is_refused(tree, tmp_path):
    with pytest.raises(UserError, match="not empty"):
        shard(str(tree), tree, progress=False)


def test_a_folder_that_cannot_be_written_is_one_sentence(tree, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        shard(str(tree), tmp_path / "file" / "out", progress=False)


def test_two_commands_never_write_one_folder(tree, tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr("data.writing.work_folder._PATIENCE", 0.1)
    (tmp_path / "out/.work").mkdir(parents=True)
    lock = os.open(tmp_path / "out/.work/lock", os.O_CREAT | os.O_RDWR)
    fcntl.flock(lock, fcntl.LOCK_EX)
    with pytest.raises(UserError, match="another `bigbatch shard` is writing"):
        shard(str(tree), tmp_path / "out", progress=False)
    os.close(lock)


@pytest.mark.slow
def test_interrupted_by_the_user_it_stops_at_once_and_resumes_later(dogs_vs_cats_zip, tmp_path):
    command = (
        "import sys; from pathlib import Path; from data.writing.sharding import shard;"
        "shard(sys.argv[1], Path(sys.argv[2]), workers=2, shard_size=16_000_000, progress=False)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", command, str(dogs_vs_cats_zip), str(tmp_path / "out")],
        stderr=subprocess.PIPE,
        text=True,
        # A shell that starts the tests in the background lets them, and so this, ignore Ctrl-C.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    while not list((tmp_path / "out/.work").glob("*.tar.json")):
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    asked = time.monotonic()
    _, errors = process.communicate(timeout=60)
    # Two seconds on idle cores; longer where other processes want the same cores.
    limit = 2 * max(1, os.getloadavg()[0] / (os.cpu_count() or 1))
    assert time.monotonic() - asked < limit and process.returncode != 0
    assert errors.count("Traceback") == 1 and "KeyboardInterrupt" in errors, (
        "only the command's own, none of the workers'"
    )
    assert not list((tmp_path / "out/.work").glob("*.partial"))
    assert not (tmp_path / "out/manifest.json").exists()
