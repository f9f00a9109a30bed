"""A run directory belongs to one training at a time, and to nobody once that has ended in whatever way."""

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.runs.run_directory import RunDirectory
from launcher.training.train import StartOptions, train
from recipes.errors import UserError
from tests.launcher.conftest import start_training

HOLD = (
    "import sys, time, pathlib, launcher.runs.run_directory as d; r = d.RunDirectory(pathlib.Path(sys.argv[1])); "
    "r.lock(); print('held', flush=True)"
)


@pytest.fixture
def holder(tmp_path):
    """Another process that trains in ``tmp_path/run``, as far as others can see."""
    (tmp_path / "run").mkdir()
    command = [sys.executable, "-c", f"{HOLD}; time.sleep(600)", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.communicate()


@pytest.mark.slow
def test_a_second_training_in_the_same_directory_is_refused_until_the_first_is_gone(small_recipe, tmp_path, holder):
    recipe = small_recipe("schedule.epochs=1", "schedule.warmup_epochs=0")
    with pytest.raises(UserError, match=f"is being trained by process {holder.pid} on .*choose another --run-dir"):
        train(recipe, tmp_path / "run", StartOptions(workers=0))
    assert [path.name for path in (tmp_path / "run").iterdir()] == ["lock"]  # nothing was written
    holder.kill()
    holder.wait()
    RunDirectory(tmp_path / "run").lock()


@pytest.mark.slow
def test_all_processes_of_a_refused_training_end_with_one_sentence(digits, tmp_path, holder):
    process = start_training(digits, tmp_path / "run", "--procs", "2")
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 2, output
    assert output.count("is being trained by") == 1 and "Traceback" not in output


def test_a_loader_process_that_outlives_its_trainer_does_not_hold_the_directory(tmp_path):
    """Forked processes have all files of their parent open; a kill leaves them behind for some seconds."""
    (tmp_path / "run").mkdir()
    program = f"import os; {HOLD}; os.fork() or time.sleep(5)"
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "run")], check=True, stdout=subprocess.DEVNULL)
    RunDirectory(Path(tmp_path / "run")).lock()


@pytest.mark.parametrize(
    "contents, part",
    [
        (b"{name: demo, optimizer: {lrr: 1}}", "unknown key 'optimizer.lrr'; did you mean 'optimizer.lr'"),
        (b"a: [", "not valid YAML"),
        (b"- a", "not a mapping"),
        (b"", "not a mapping"),
        ("name: café".encode("latin-1"), "not valid YAML"),
        ("name: demo".encode("utf-16"), "not a mapping|not valid YAML|unknown key"),
        (b"\x80\x04\x95", "not valid YAML"),
    ],
)
def test_a_recipe_of_a_run_that_cannot_be_read_is_named_by_its_file(tmp_path, contents, part):
    (tmp_path / "recipe.yaml").write_bytes(contents)
    with pytest.raises(UserError, match=part) as refused:
        RunDirectory(tmp_path).recipe()
    assert str(tmp_path / "recipe.yaml") in str(refused.value) and "\n" not in str(refused.value)


@pytest.mark.parametrize("contents", [b"", b"[]", b"{}", b"{", b"\xff\xfe{\x00}\x00"])
def test_a_damaged_description_of_a_run_is_named_by_its_file(tmp_path, contents):
    (tmp_path / "run.json").write_bytes(contents)
    with pytest.raises(UserError, match="run.json is damaged: remove it"):
        RunDirectory(tmp_path).metadata()
