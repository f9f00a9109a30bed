"""The command line: it teaches, its examples run, and a mistake is one sentence and exit code 2."""

import json
import re
import subprocess
import sys
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.main import get_command

from launcher.cli.main import app
from launcher.evaluation import saved_weights
from launcher.processes import option_arguments
from launcher.runs.history import History
from launcher.runs.run_directory import RunDirectory
from launcher.runs.runs_table import run_statuses
from tests.command_line import run_program
from tests.launcher.conftest import SMALL


@pytest.fixture(scope="session")
def run_directory(digits, tmp_path_factory) -> Path:
    """A finished run of two epochs."""
    run = tmp_path_factory.mktemp("runs") / "demo"
    changes = [*SMALL, "schedule.epochs=2", "schedule.warmup_epochs=0"]
    run_program("train", "demo", *changes, "--data", digits, "--run-dir", run, "--workers", "0").check_returncode()
    return run


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


def run_weights(run: Path) -> dict:
    return saved_weights.run_weights(RunDirectory(run), ema=False).tensors


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


@pytest.mark.parametrize("command", [["train", "--dry-run"], ["plan", "--gpus", "1"]])
def test_a_changed_batch_size_is_said_with_its_learning_rates(bigbatch, tmp_path, monkeypatch, command):
    monkeypatch.chdir(tmp_path)
    changes = ["model.name=test_convnext", "batch.global=32", "batch.slices=1"]
    code, output, errors = bigbatch(command[0], "demo", *changes, *command[1:])
    assert code == 0, errors
    assert "batch 128 → 32: the learning rate stays 4e-3; square-root rule 2e-3, linear 1e-3" in output


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
