"""What `bigbatch shard` promises about the files it writes, and what reading them back promises."""

import errno
import io
import json
import os
import pickle
import signal
import subprocess
import sys
import tarfile
import time
import zipfile
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.reading.shards import INDEX_DTYPE, ShardSet
from data.writing.shard_parts import sample_key
from data.writing.sharding import shard
from data.writing.verify import verify
from recipes.errors import UserError
from tests.data.pictures import contents, encoded, write_tree

SMALL = 40_000  # bytes of a shard, so that a few dozen images make several


@pytest.fixture
def tree(tmp_path):
    return write_tree(tmp_path / "animals")


def test_plain_webdataset_reads_the_same_images_and_labels(tree, tmp_path):
    import webdataset

    found = shard(str(tree), tmp_path / "out", shard_size=SMALL, progress=False)
    for split in found.splits.values():
        assert len(split.shard_paths) >= 1
        plain = webdataset.WebDataset([str(path) for path in split.shard_paths], shardshuffle=False).decode("rgb8")
        samples = list(plain)
        assert len(samples) == len(split)
        for i, sample in enumerate(samples):
            assert sample["cls"] == split.labels[i]
            ours = np.asarray(Image.open(io.BytesIO(split.read(i))).convert("RGB"))
            assert np.array_equal(sample["jpg"], ours)
    assert len(found.split("train").shard_paths) > 1


def test_every_image_is_stored_once_byte_for_byte_with_its_label_and_name(tree, tmp_path):
    found = shard(str(tree), tmp_path / "out", shard_size=SMALL, progress=False)
    assert found.classes == ("ant", "bee", "cow")
    stored = {}
    for split in found.splits.values():
        for i in range(len(split)):
            label = found.classes[split.labels[i]]
            name = split.sample_name(i)
            assert f"-{label}_{label}_" in name and split.shard_paths[split.index[i]["shard"]].name in name
            stored[split.read(i)] = label
    original = {path.read_bytes(): path.parent.name for path in tree.rglob("*.jpg")}
    assert stored == original


def test_names_in_any_script_are_kept_and_read_back_by_plain_webdataset(tmp_path):
    import webdataset

    for number in range(2):
        for folder in ("große Tiere", "猫"):
            (tmp_path / "tree" / folder).mkdir(parents=True, exist_ok=True)
            (tmp_path / "tree" / folder / f"é.{number}.jpg").write_bytes(encoded(f"{folder}{number}"))
    found = shard(str(tmp_path / "tree"), tmp_path / "out", val_fraction=0, progress=False)
    train = found.split("train")
    names = [train.sample_name(i) for i in range(4)]
    assert {name[8:] for name in names} >= {
        "-große_Tiere_é_0.jpg in train-000000.tar",
        "-猫_é_1.jpg in train-000000.tar",
    }
    plain = webdataset.WebDataset(str(train.shard_paths[0]), shardshuffle=False)
    assert [sample["__key__"] + ".jpg in train-000000.tar" for sample in plain] == names


def test_manifest_and_index_have_the_documented_form(tree, tmp_path):
    shard(str(tree), tmp_path / "out", val_fraction=0.2, shard_size=SMALL, progress=False)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["format"] == 1 and manifest["name"] == "animals"
    assert manifest["splits"]["train"]["per_class"] == [8, 8, 8]
    assert manifest["splits"]["val"]["per_class"] == [2, 2, 2]
    index = np.load(tmp_path / "out/train.index.npy", mmap_mode="r")
    assert index.dtype == INDEX_DTYPE and len(index) == manifest["splits"]["train"]["samples"] == 24
    assert sum(entry["samples"] for entry in manifest["splits"]["train"]["shards"]) == 24
    assert not (tmp_path / "out/.work").exists()


def test_classes_are_mixed_inside_a_shard(tree, tmp_path):
    found = shard(str(tree), tmp_path / "out", shard_size=SMALL, progress=False)
    train = found.split("train")
    first = train.labels[train.index["shard"] == 0]
    assert set(first) == {0, 1, 2} and list(first) != sorted(first)


def test_number_of_workers_never_changes_a_byte(tree, tmp_path):
    for workers in (1, 3):
        shard(str(tree), tmp_path / str(workers), shard_size=SMALL, workers=workers, progress=False)
    assert contents(tmp_path / "1") == contents(tmp_path / "3")


@pytest.fixture
def small_parts(monkeypatch):
    """Make the parts of a shard so small that every shard of the tests has several."""
    monkeypatch.setattr("data.writing.shard_parts._PART_SIZE", 3_000)


def test_several_processes_write_one_shard_with_the_same_bytes(tree, tmp_path, small_parts, monkeypatch):
    (tree / "ant/ant.3.jpg").write_bytes(b"no image")  # which moves all that follows it
    for workers in (1, 3):
        shard(str(tree), tmp_path / str(workers), workers=workers, progress=False)
    monkeypatch.undo()
    shard(str(tree), tmp_path / "one part", workers=1, progress=False)
    assert contents(tmp_path / "1") == contents(tmp_path / "3") == contents(tmp_path / "one part")
    assert not verify(tmp_path / "3", progress=False)


def test_a_shard_has_the_bytes_that_webdatasets_writer_gives(tree, tmp_path, small_parts):
    from webdataset import TarWriter

    found = shard(str(tree), tmp_path / "out", progress=False)
    train = found.split("train")
    with (tmp_path / "theirs.tar").open("wb") as stream, TarWriter(stream, encoder=False, mtime=0) as writer:
        writer.tarstream.format = tarfile.USTAR_FORMAT
        for i in range(len(train)):
            key = train.sample_name(i).partition(".")[0]
            writer.write({"__key__": key, "jpg": train.read(i), "cls": str(train.labels[i]).encode()})
    assert (tmp_path / "theirs.tar").read_bytes() == (tmp_path / "out/train-000000.tar").read_bytes()


def test_a_full_disk_leaves_no_unfinished_part(tree, tmp_path, small_parts, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("data.writing.shard_writing.flush", full)
    with pytest.raises(UserError, match="No space left on device; the same command resumes"):
        shard(str(tree), tmp_path / "out", workers=2, progress=False)
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} == {"plan.json", "lock"}


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


def test_unfinished_work_of_other_options_is_refused(tree, tmp_path):
    (tmp_path / "out/.work").mkdir(parents=True)
    (tmp_path / "out/.work/plan.json").write_text("{}")
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


def test_unreadable_images_are_left_out_counted_and_named(tree, tmp_path, capsys):
    whole = (tree / "ant/ant.3.jpg").read_bytes()
    (tree / "ant/ant.3.jpg").write_bytes(whole[: len(whole) // 2])
    (tree / "bee/bee.4.jpg").write_bytes(b"this is not an image")
    (tree / "cow/cow.5.jpg").write_bytes(b"")
    shard(str(tree), tmp_path / "out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert {entry["name"]: entry["reason"] for entry in manifest["skipped"]} == {
        "ant/ant.3.jpg": "OSError: Truncated File Read",
        "bee/bee.4.jpg": "not an image of a known format",
        "cow/cow.5.jpg": "empty file",
    }
    assert sum(sum(split["per_class"]) for split in manifest["splits"].values()) == 27
    assert "left out 3 unreadable images" in capsys.readouterr().err


def test_a_source_without_any_readable_image_is_an_error(tmp_path):
    for name in ("a", "b"):
        (tmp_path / "broken" / name).mkdir(parents=True)
        for number in range(3):
            (tmp_path / "broken" / name / f"{number}.jpg").write_bytes(b"no image")
    with pytest.raises(UserError, match=r"none of the train images .* e.g. ./..jpg \(not an image of a known format\)"):
        shard(str(tmp_path / "broken"), tmp_path / "out", progress=False)
    assert not list((tmp_path / "out").iterdir()), "the mended source is another one, which this folder can take"


def test_a_bad_checksum_in_a_zip_costs_one_image_not_the_run(tree, tmp_path):
    packed = tmp_path / "animals.zip"
    with zipfile.ZipFile(packed, "w") as archive:
        for path in sorted(tree.rglob("*.jpg")):
            archive.write(path, path.relative_to(tree))
    data = bytearray(packed.read_bytes())
    data[data.find((tree / "bee/bee.2.jpg").read_bytes()) + 300] ^= 0xFF
    packed.write_bytes(data)
    shard(str(packed), tmp_path / "out", progress=False)
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["skipped"] == [{"name": "bee/bee.2.jpg", "reason": "its checksum in the zip is wrong"}]


def test_a_zip_and_its_unpacked_folder_give_the_same_shards(tree, tmp_path):
    packed = tmp_path / "animals.zip"
    with zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in tree.rglob("*.jpg"):
            archive.write(path, Path("top", path.relative_to(tree)))
    shard(str(tree), tmp_path / "from folder", progress=False)
    shard(str(packed), tmp_path / "from zip", progress=False)
    assert contents(tmp_path / "from folder") == contents(tmp_path / "from zip")


def test_a_split_reads_the_same_after_a_fork_and_after_a_pickle(tree, tmp_path):
    train = shard(str(tree), tmp_path / "out", shard_size=SMALL, progress=False).split("train")
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


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("cat.12.jpg", "00000007-cat_12"),
        ("train/airplane/0001.jpg", "00000007-train_airplane_0001"),
        ("großes Tier/ñ.jpeg", "00000007-großes_Tier_ñ"),
        ("x" * 300 + "end.jpg", "00000007-" + "x" * 77 + "end"),
    ],
)
def test_a_key_has_no_dots_and_names_the_image(name, key):
    assert sample_key(7, name) == key


def test_progress_is_plain_lines_where_there_is_no_terminal(tree, tmp_path, capsys):
    shard(str(tree), tmp_path / "out")
    lines = capsys.readouterr().err
    assert "sharding animals: 30 of 30 images" in lines and "\x1b" not in lines


def test_reading_modules_do_not_import_torch():
    command = (
        "import sys, data.writing.sharding, data.reading.shards, data.writing.verify; sys.exit('torch' in sys.modules)"
    )
    subprocess.run([sys.executable, "-c", command], check=True)


def test_only_images_above_the_size_limit_are_encoded_again(tree, tmp_path):
    (tree / "ant/large.jpg").write_bytes(encoded("large", size=(400, 300)))
    found = shard(str(tree), tmp_path / "out", shortest_side=100, val_fraction=0, progress=False)
    assert json.loads((tmp_path / "out/manifest.json").read_text())["shrunk"] == 1
    original = {path.read_bytes() for path in tree.rglob("*.jpg")}
    train = found.split("train")
    changed = [train.read(i) for i in range(len(train)) if train.read(i) not in original]
    assert [Image.open(io.BytesIO(data)).size for data in changed] == [(133, 100)]
    with pytest.raises(UserError, match="other options"):
        shard(str(tree), tmp_path / "out", val_fraction=0, progress=False)


def test_odd_images_are_counted_by_kind(tree, tmp_path, capsys):
    (tree / "ant/c.jpg").write_bytes(encoded("c", mode="CMYK"))
    (tree / "ant/p.png").write_bytes(encoded("p", "PNG", mode="P"))
    (tree / "bee/g.jpg").write_bytes(encoded("g", mode="L"))
    (tree / "bee/cut.jpg").write_bytes(encoded("g")[:-100])
    shard(str(tree), tmp_path / "out")
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["odd"] == {"cmyk": 1, "grayscale": 1, "palette": 1, "truncated": 1}
    assert "1 cmyk, 1 grayscale" in capsys.readouterr().err


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
