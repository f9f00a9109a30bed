"""The command line teaches, and the examples of its help run."""

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from typer.main import get_command

from launcher.cli.main import app
from launcher.processes import option_arguments
from launcher.runs.history import History
from launcher.runs.run_directory import RunDirectory
from launcher.runs.runs_table import run_statuses
from tests.command_line import run_program
from tests.launcher.cli.conftest import run_weights
from tests.launcher.conftest import SMALL


@pytest.mark.parametrize("command", [["train", "--dry-run"], ["plan", "--gpus", "1"]])
def test_a_changed_batch_size_is_said_with_its_learning_rates(bigbatch, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    changes = ["model.name=test_convnext", "batch.global=32", "batch.slices=1"]
    code, output, errors = bigbatch(command[0], "demo", *changes, *command[1:])
    assert code == 0, errors
    assert "batch 128 → 32: the learning rate stays 4e-3; square-root rule 2e-3, linear 1e-3" in output


def test_every_command_has_help_with_an_example():
    command = get_command(app)
    for name, sub in command.commands.items():
        assert sub.help and "Example: bigbatch" in (sub.epilog or ""), name
        assert f"bigbatch {name}" in sub.epilog


@pytest.mark.slow
def test_the_examples_of_the_help_run(digits, tmp_path):
    """They run in an otherwise empty folder, in the order in which a user meets them."""
    commands = get_command(app).commands
    order = [
        "recipes",
        "shard",
        "verify",
        "lr",
        "train",
        "evaluate",
        "predict",
        "export",
        "report",
        "fingerprint",
        "branch",
        "replay",
        "diff",
        "plan",
        "runs",
        "doctor",
    ]
    Image.new("RGB", (40, 30)).save(tmp_path / "photograph.jpg")  # the one thing a user brings
    local = [name for name in order if name in commands]
    for name in local:
        example = re.search(r"Example: bigbatch (.*)", commands[name].epilog)[1].split()
        if name == "train":
            example += ["model.name=test_convnext", "schedule.epochs=3"]  # the example, small
        if name == "lr":
            example += ["model.name=test_convnext", "--steps", "20"]
        done = run_program(*example, folder=tmp_path)
        assert done.returncode == 0, (name, done.stdout, done.stderr)


def test_the_version_is_printed(bigbatch):
    assert bigbatch("--version") == (0, f"bigbatch {version('bigbatch')}\n", "")


def test_options_become_arguments_of_the_processes():
    options = {"--data": "a b", "--run-dir": Path("r"), "--workers": 0, "--profile": None}
    assert option_arguments(options) == ["--data", "a b", "--run-dir", "r", "--workers", "0"]


def test_help_does_not_import_torch():
    """This is why `bigbatch --help` is instant; the time itself is a benchmark."""
    code = (
        "import sys; sys.argv = ['bigbatch', '--help']\nfrom launcher.cli.main import main\ntry: main()\n"
        "except SystemExit: pass\nsys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True).returncode == 0


@pytest.mark.slow
def test_what_is_imported_is_never_searched_for_garbage(run_directory, tmp_path):
    """Which halves the processor time of a command that imports torch; the time itself is a benchmark."""
    code = (
        "import gc, os, sys; from launcher.cli.main import main\nsys.argv[0] = 'bigbatch'\n"
        "def report(phase, found):\n"
        "    if phase == 'start' and found['generation'] == 2: os.write(1, b'%d frozen\\n' % gc.get_freeze_count())\n"
        "gc.callbacks.append(report); main()"
    )
    command = [sys.executable, "-c", code, "export", run_directory, tmp_path / "x.safetensors"]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    frozen = [int(count) for count in re.findall(r"(\d+) frozen", done.stdout)]
    assert all(count > 100_000 for count in frozen), "a full collection, before the end"


@pytest.mark.slow
def test_evaluate_export_and_plain_timm_agree(bigbatch, digits, run_directory, tmp_path):
    """The exported file is timm's: a script that does not know us gets the same accuracy."""
    file = tmp_path / "demo.safetensors"
    assert bigbatch("export", run_directory, file)[0] == 0
    code, of_run, _ = bigbatch("evaluate", run_directory, "--data", digits)
    assert code == 0
    mistakes = json.loads(RunDirectory(run_directory).mistakes_file.read_text())  # what the report shows
    assert (
        f"EMA weights of step 44 of {run_directory}: top-1 {1 - mistakes['wrong'] / mistakes['images']:.2%}" in of_run
        and mistakes["weights"] == "EMA"
    )
    ours = re.search(r"EMA weights of step 44 of \S+: top-1 ([\d.]+)% \S+  top-5 ([\d.]+)% ", of_run).groups()
    code, of_file, _ = bigbatch("evaluate", file, "--data", digits)
    assert code == 0 and f"top-1 {ours[0]}%" in of_file and f"top-5 {ours[1]}%" in of_file
    script = tmp_path / "plain.py"
    script.write_text(PLAIN_TIMM)
    done = subprocess.run([sys.executable, script, file, digits], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [*ours]


PLAIN_TIMM = """
import sys, glob, timm, torch, webdataset
from safetensors.torch import load_file
file, shards = sys.argv[1:]
model = timm.create_model("test_convnext", num_classes=10)
model.load_state_dict(load_file(file), strict=True)
model.eval()
transform = timm.data.create_transform(32, is_training=False, interpolation="bicubic", crop_pct=1.0)
right1 = right5 = images = 0
dataset = webdataset.WebDataset(sorted(glob.glob(shards + "/val-*.tar")), shardshuffle=False)
for image, label in dataset.decode("pil").to_tuple("jpg", "cls"):
    with torch.inference_mode():
        guesses = model(transform(image.convert("RGB"))[None])[0].topk(5).indices.tolist()
    right1 += guesses[0] == int(label); right5 += int(label) in guesses; images += 1
assert "launcher" not in sys.modules and "data" not in sys.modules
print(f"{100 * right1 / images:.2f} {100 * right5 / images:.2f}")
"""


def test_raw_weights_are_exported_on_request(bigbatch, run_directory, tmp_path):
    bigbatch("export", run_directory, tmp_path / "averaged.safetensors")
    bigbatch("export", run_directory, tmp_path / "raw.safetensors", "--raw")
    averaged, raw = load_file(tmp_path / "averaged.safetensors"), load_file(tmp_path / "raw.safetensors")
    assert averaged.keys() == raw.keys()
    assert not torch.equal(averaged["stem.0.weight"], raw["stem.0.weight"])
    expected = run_weights(run_directory)
    assert all(torch.equal(raw[name], expected[name]) for name in raw)


def test_a_second_ctrl_c_says_where_the_run_goes_on(bigbatch, digits, run_directory, monkeypatch, tmp_path):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("launcher.training.train.train", interrupted)
    for run, expected in (
        (run_directory, "the newest checkpoint is of step 44"),
        (tmp_path / "new", "the run starts over"),
    ):
        code, _, errors = bigbatch("train", "demo", *SMALL, "--data", digits, "--run-dir", run)
        assert code == 130 and expected in errors and "resume with: bigbatch train demo" in errors


def test_a_finished_run_started_again_does_nothing(bigbatch, digits, run_directory):
    steps = [event for event in RunDirectory(run_directory).metrics.events() if event["event"] == "step"]
    code, output, _ = bigbatch(
        "train",
        "demo",
        *SMALL,
        "schedule.epochs=2",
        "schedule.warmup_epochs=0",
        "--data",
        digits,
        "--run-dir",
        run_directory,
        "--workers",
        0,
    )
    assert code == 0 and "finished" in output
    assert (
        len(History(run_directory).starts) > 1
        and run_statuses(run_directory)[0].restarts == len(History(run_directory).restarts) == 0
    )
    assert [event for event in RunDirectory(run_directory).metrics.events() if event["event"] == "step"] == steps
