"""The page on one's own code: its example module and recipe work as they stand, and keep the promises of every run."""

import importlib
import re
import shutil
import sys
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState

from data.images.augment import custom_transforms
from launcher.checkpoints import checkpoint
from launcher.runs.run_directory import RunDirectory
from launcher.training.train import StartOptions, train
from launcher.training.user_code_checks import check_exact
from models.custom_loss import checked_losses, custom_losses
from models.loss import soft_targets
from recipes.errors import UserCodeError, UserError
from recipes.load import load
from recipes.user_code import code_to_copy, import_modules
from tests.command_line import run_command, run_program
from tests.docs.pages import ROOT, blocks
from tests.launcher.comparison import assert_same_curve

PAGE = ROOT / "docs" / "own-code.md"
SHORT = [
    "data.classes=null",
    "batch.global=48",
    "batch.slices=4",
    "schedule.epochs=2",
    "schedule.warmup_epochs=0",
    "engine.precision=float32",
]


def block(language: str, name: str = "") -> str:
    return next(b.text for b in blocks(PAGE, language) if not name or name in b.info)


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty working directory with the page's module and recipe."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "my_code.py").write_text(block("python", "my_code"))
    (tmp_path / "my_recipe.yaml").write_text(block("yaml"))
    yield tmp_path
    for name in ("my_code", "bad_code"):
        sys.modules.pop(name, None)
    importlib.invalidate_caches()


def bigbatch(monkeypatch, *arguments: str) -> int:
    AcceleratorState._reset_state(reset_partial_state=True)
    code = run_command(monkeypatch, *arguments)
    AcceleratorState._reset_state(reset_partial_state=True)
    return code


@pytest.fixture
def stripes(here, monkeypatch) -> Path:
    """Shards of the page's source."""
    arguments = ["shard", "stripes:120", "shards/stripes", "--val-fraction", "0.2", "--import", "my_code"]
    assert bigbatch(monkeypatch, *arguments) == 0
    return here / "shards/stripes"


def test_the_example_trains_is_exact_at_every_cut_and_is_remembered_by_the_run(stripes, monkeypatch, capsys):
    check_exact(load("my_recipe.yaml", [f"data.path={stripes}", *SHORT]))
    train = ["train", "my_recipe.yaml", "--data", str(stripes), *SHORT, "--workers", "1"]
    assert bigbatch(monkeypatch, *train) == 0
    recipe = RunDirectory(Path("runs/my_recipe")).recipe()
    assert recipe.code.modules == ("my_code",)
    assert bigbatch(monkeypatch, "evaluate", "runs/my_recipe", "--data", str(stripes), "--workers", "0") == 0
    assert bigbatch(monkeypatch, "export", "runs/my_recipe", "w.safetensors") == 0
    weights = ["evaluate", "w.safetensors", "--data", str(stripes), "--workers", "0"]
    assert bigbatch(monkeypatch, *weights) == 2
    assert "--import my_code" in capsys.readouterr().err
    assert bigbatch(monkeypatch, *weights, "--import", "my_code") == 0


@pytest.mark.slow
def test_the_example_has_one_curve_on_one_and_on_three_processes(stripes):
    train(load("my_recipe.yaml", [f"data.path={stripes}", *SHORT]), Path("one"), StartOptions(workers=0))
    options = ["--procs", "3", "--workers", "1", "--run-dir", "three"]
    done = run_program("train", "my_recipe.yaml", "--data", stripes, *SHORT, *options)
    assert done.returncode == 0, done.stdout + done.stderr
    assert_same_curve(Path("three"), Path("one"), 4)


@pytest.mark.slow
def test_a_resumed_run_of_own_code_equals_one_that_was_not_interrupted(stripes, monkeypatch):
    """The optimizer's own state is in the checkpoint."""
    recipe = load("my_recipe.yaml", [f"data.path={stripes}", *SHORT, "run.save_every=1", "run.keep=9"])
    options = StartOptions(micro_batch=12, workers=0)
    assert train(recipe, Path("a"), options) and train(recipe, Path("b"), options)
    for step, folder in checkpoint.saved_steps(Path("b/checkpoints")).items():
        if step > 1:
            shutil.rmtree(folder)
    assert train(recipe, Path("b"), options)
    a, b = (checkpoint.latest_valid(Path(run) / "checkpoints").reader() for run in "ab")
    assert "momentum_buffer" in a.kinds and a.kinds == b.kinds
    for kind in a.kinds:
        for name, value in a.tensors(kind).items():
            assert torch.equal(value, b.tensor(kind, name)), f"{kind}/{name}"


def test_a_job_copies_the_code_of_the_working_directory_but_no_installed_package(here):
    (here / "pack").mkdir()
    (here / "pack" / "__init__.py").touch()
    (here / "pack" / "inner.py").touch()
    assert code_to_copy(["my_code", "pack.inner", "timm", "os", "sys"]) == [here / "my_code.py", here / "pack"]


def test_what_is_not_exact_is_refused(here, digits):
    @custom_transforms.register("counting")
    def counting(pixels, generator, calls=[]):  # noqa: B006  the mistake that the test is about
        calls.append(1)
        return pixels + len(calls)

    @custom_losses.register("whole batch")
    def whole_batch(logits, targets):
        return (logits - logits.mean(dim=0)).square().sum(dim=1)

    path = [f"data.path={digits}", *SHORT]
    with pytest.raises(UserError, match="inputs of step 0 differ"):
        check_exact(load("demo", [*path, "code.transform=counting"]))
    with pytest.raises(UserError, match="another value in another micro-batch"):
        check_exact(load("demo", [*path, "code.loss=whole batch"]))
    with pytest.raises(UserError, match="one loss for each image"):
        checked_losses(torch.tensor(1.0), 4)


def test_mistakes_are_sentences_and_errors_of_the_code_have_its_traceback(here, monkeypatch, capsys, digits):
    with pytest.raises(UserError, match="module nowhere of your own code is not found"):
        import_modules(["nowhere"])
    with pytest.raises(UserError, match=r"module my_code.inner of your own code is not found"):
        import_modules(["my_code.inner"])
    for path, name in (
        ("my_code.py", "my_code"),
        ("./pack/inner.py", "pack.inner"),
        ("my-code", "my_package.my_module"),
    ):
        with pytest.raises(UserError, match=rf"not the name of a Python module: write {name}$"):
            load("demo", [f"code.modules=[{path}]"])
    (here / "bad_code.py").write_text("def broken():\n    return {}['key']\n\nbroken()\n")
    with pytest.raises(UserCodeError, match=r"importing bad_code failed with KeyError \('key'\)") as raised:
        import_modules(["bad_code"])
    assert "bad_code.py" in raised.value.traceback and "user_code.py" not in raised.value.traceback
    for text, said in (
        ("import not_there_at_all\n", "No module named 'not_there_at_all'): install the module"),
        ("def broken(:\n", "importing bad_code failed with SyntaxError"),
    ):
        (here / "bad_code.py").write_text(text)
        importlib.invalidate_caches()
        with pytest.raises(UserCodeError, match=re.escape(said)):
            import_modules(["bad_code"])
    train = ["train", "demo", "--data", str(digits), *SHORT, "model.name=test_convnext", "--workers"]
    assert bigbatch(monkeypatch, *train, "0", "code.loss=foca", "--import", "my_code") == 2
    assert "did you mean 'focal'?" in capsys.readouterr().err

    @custom_transforms.register("dividing")
    def dividing(pixels, generator):
        return pixels // (pixels.sum() * 0).item()

    assert bigbatch(monkeypatch, *train, "1", "code.transform=dividing") == 2  # through a loader worker
    error = capsys.readouterr().err
    assert "transform dividing failed with ZeroDivisionError" in error or "RuntimeError" in error
    assert "in dividing" in error and "data/loader.py" not in error


def test_two_parts_of_one_name_are_refused_but_a_module_may_be_imported_again(here):
    import_modules(["my_code"])
    del sys.modules["my_code"]
    import_modules(["my_code"])
    (here / "bad_code.py").write_text(
        "import bigbatch\n@bigbatch.register_loss('focal')\ndef other(logits, targets):\n    return logits.sum(1)\n"
    )
    with pytest.raises(UserError, match="as the loss 'focal', my_code.focal and bad_code.other: give one of them"):
        import_modules(["bad_code"])


def test_a_start_with_changed_code_says_so(here, digits, monkeypatch, capfd):
    train = ["train", "demo", "--data", str(digits), *SHORT, "model.name=test_convnext", "model.layer_scale=null"]
    train += ["schedule.epochs=1", "--run-dir", "run", "--workers", "0", "code.transform=salt", "--import", "my_code"]
    said = []
    for change in ("", "", "# another line\n"):
        with (here / "my_code.py").open("a") as file:
            file.write(change)
        assert bigbatch(monkeypatch, *train) == 0
        said.append("your own code (my_code) has changed since the last start" in capfd.readouterr().out)
    assert said == [False, False, True]


def test_soft_targets_are_those_of_timm():
    from timm.data.mixup import mixup_target

    labels = torch.tensor([0, 1, 2, 3])
    ours = soft_targets(labels, labels.flip(0), torch.full((4,), 0.3), 5, 0.1)
    torch.testing.assert_close(ours, mixup_target(labels, 5, lam=0.3, smoothing=0.1))
