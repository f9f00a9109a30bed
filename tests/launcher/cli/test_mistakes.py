"""A mistake of the user is one sentence and exit code 2."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from tests.launcher.cli.conftest import run_weights
from tests.launcher.conftest import SMALL


def folder_of(path: Path, **classes: int) -> Path:
    for name, count in classes.items():
        (path / name).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (20, 20), (number, 0, 0)).save(path / name / f"{number}.jpg")
    return path


def corrupt_zip(path: Path) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("train/cat.0.jpg", bytes(1000))
    path.write_bytes(path.read_bytes()[:600])
    return path


def wrong_shape(path: Path, run: Path) -> Path:
    save_file(run_weights(run) | {"stem.0.weight": torch.zeros(3, 3)}, path)
    return path


MISTAKES = {
    "missing shards": lambda p, d, r: (["train", "demo", "--data", p / "none"], "bigbatch shard"),
    "no shards named": lambda p, d, r: (["train", "demo"], "--data"),
    "missing source": lambda p, d, r: (["shard", p / "none", p / "out"], "none"),
    "empty folder": lambda p, d, r: (["shard", folder_of(p / "empty", cat=0), p / "out"], "image"),
    "folder with one class": lambda p, d, r: (["shard", folder_of(p / "one", cat=3), p / "out"], "class"),
    "corrupt zip": lambda p, d, r: (["shard", corrupt_zip(p / "cats.zip"), p / "out"], "cats.zip"),
    "override with a typo": lambda p, d, r: (["train", "demo", "optimizer.lrr=1", "--data", d], "'optimizer.lr'"),
    "unknown recipe": lambda p, d, r: (["recipes", "demoo"], "'demo'"),
    "unknown model": lambda p, d, r: (
        ["train", "demo", "model.name=convnext_minuscule", "--data", d, "--run-dir", p / "r"],
        "timm model",
    ),
    "weights of the wrong shape": lambda p, d, r: (
        [
            "train",
            "demo",
            *SMALL,
            f"model.weights={wrong_shape(p / 'w.safetensors', r)}",
            "--data",
            d,
            "--run-dir",
            p / "r",
        ],
        "stem.0.weight is 3×3 there",
    ),
    "weights file that is missing": lambda p, d, r: (
        ["evaluate", p / "none.safetensors", "--data", d],
        "none.safetensors",
    ),
    "a photograph that is missing": lambda p, d, r: (["predict", r, p / "none.jpg"], "none.jpg"),
    "a batch no cut can make": lambda p, d, r: (
        ["train", "demo", *SMALL, "--micro-batch", "65", "--data", d, "--run-dir", p / "r"],
        "use 1 to 64",
    ),
    "a batch larger than the data": lambda p, d, r: (
        ["train", "convnext_tiny_in1k", "data.classes=10", "--data", d, "--run-dir", p / "r"],
        "batch.global=512 batch.slices=4 optimizer.lr=1.41e-3",
    ),
    "other classes than the data": lambda p, d, r: (
        ["train", "convnext_tiny_in1k", "--data", d, "--run-dir", p / "r"],
        "data.classes=10",
    ),
    "a dry run of missing shards": lambda p, d, r: (
        ["train", "demo", "--data", p / "none", "--dry-run"],
        "bigbatch shard",
    ),
    "a dry run for other classes": lambda p, d, r: (
        ["train", "convnext_tiny_in1k", "--data", d, "--dry-run"],
        "data.classes=10",
    ),
    "a dry run of too large a batch": lambda p, d, r: (
        ["train", "demo", "batch.global=2048", "--data", d, "--dry-run"],
        "batch.global=32 batch.slices=1",
    ),
    "a run directory of another recipe": lambda p, d, r: (
        ["train", "demo", *SMALL, "optimizer.lr=1e-3", "--data", d, "--run-dir", r],
        "optimizer.lr is 0.004 there and 0.001 here",
    ),
    "a run directory that cannot be made": lambda p, d, r: (
        ["train", "demo", *SMALL, "--data", d, "--run-dir", (p / "file").write_text("") or p / "file" / "run"],
        "cannot be made",
    ),
    "a file that is no safetensors": lambda p, d, r: (["export", r, p / "x.pth"], "x.safetensors"),
    "a run that is missing": lambda p, d, r: (["predict", p / "none", p / "x.jpg"], "no run or weights file"),
    "not a run directory": lambda p, d, r: (["export", p, p / "x.safetensors"], "not a run directory"),
    "a device that cannot do it": lambda p, d, r: (
        ["train", "demo", "engine.precision=fp16", "--data", d, "--run-dir", p / "r"],
        "GPU",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_sentence_and_exit_code_2(bigbatch, tmp_path, digits, run_directory, mistake):
    if mistake == "a device that cannot do it" and torch.cuda.is_available():
        pytest.skip("this machine has the device")
    arguments, part = MISTAKES[mistake](tmp_path, digits, run_directory)
    code, _, errors = bigbatch(*arguments)
    lines = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 2 and len(lines) == 1 and part in lines[0], errors
    assert "Traceback" not in errors


@pytest.mark.parametrize(
    "variables, part",
    [
        ({"WORLD_SIZE": "2"}, "RANK is not set"),
        ({"WORLD_SIZE": "2", "RANK": "one"}, "RANK is 'one', not a number"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "contradict each other"),
        ({"WORLD_SIZE": "two", "RANK": "1"}, "WORLD_SIZE is 'two', not a number"),
    ],
)
@pytest.mark.parametrize("options", [[], ["--dry-run"], ["--procs", "2"]])
def test_variables_of_a_launcher_that_are_wrong_are_named(
    bigbatch, monkeypatch, tmp_path, digits, variables, part, options
):
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, _, errors = bigbatch("train", "demo", *SMALL, "--data", digits, "--run-dir", tmp_path / "run", *options)
    assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1 and part in errors


@pytest.mark.parametrize("options", [[], ["--dry-run"]])
def test_more_processes_than_gpus_are_refused(bigbatch, monkeypatch, tmp_path, digits, options):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    command = ["train", "demo", *SMALL, "--data", digits, "--run-dir", tmp_path / "run", "--procs", "3", *options]
    code, _, errors = bigbatch(*command)
    assert code == 2 and "--procs 3 needs as many GPUs, and 2 are visible here: use --procs 2" in errors


def test_a_wrong_name_is_said_before_torch_is_imported(run_directory):
    """This is why a mistyped name is reported at once; the time itself is a benchmark."""
    wrong = [
        ["train", "demo"], ["resume", run_directory], ["cancel", run_directory], ["export", "none", "x.safetensors"],
        ["predict", "none", "x.jpg"], ["evaluate", "none"],
    ]  # fmt: skip
    code = (
        "import sys; from launcher.cli.main import main\nsys.argv[0] = 'bigbatch'\ntry: main()\n"
        "except SystemExit as e: sys.exit(10 * ('torch' in sys.modules) + e.code)"
    )
    for arguments in wrong:
        done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], capture_output=True, text=True)
        assert done.returncode == 2 and done.stderr.startswith("error: "), (arguments, done.returncode, done.stderr)
        if arguments[0] == "resume":
            assert "the same command resumes it" in done.stderr
