"""No command writes its file over a part of a run, over what it reads, or over a file of another kind."""

from pathlib import Path

import pytest

from launcher.runs.output_file import PAGE_ENDINGS, check_output
from tests.launcher.saved_runs import CLASSES, make_saved_run

PART = "run/checkpoints/step-00000004/part-00000-of-00001.safetensors"


@pytest.mark.parametrize(
    "command",
    [
        f"export run {PART}",
        "export run run/checkpoints/new.safetensors",
        "export run run/checkpoints/folder",
        "export run linked/checkpoints/new.safetensors",
        "export run notes",
        "report run --out run/run.json",
        "report run --out run/metrics.jsonl",
        "report run --out run/checkpoints/page.html",
        "report run --out m.yaml",
        "lr m.yaml --out m.yaml",
        "lr m.yaml --out run/recipe.yaml",
        "features run shards run/features/new.npz",
        "features w.npz shards w.npz --recipe demo",
    ],
)
def test_a_file_that_is_needed_is_not_overwritten(toy_shards, tmp_path, monkeypatch, bigbatch, command):
    monkeypatch.chdir(tmp_path)
    make_saved_run(tmp_path / "run", toy_shards(*CLASSES), {4: (0.5, 0.25)})
    Path("linked").symlink_to("run")
    Path("shards").symlink_to(toy_shards(*CLASSES))
    Path("m.yaml").write_text("base: demo\nmodel: {name: test_convnext}\ndata: {path: shards}\n")
    for name in ("notes", "w.npz"):
        Path(name).write_text("mine")
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert tmp_path / PART in before
    code, _, errors = bigbatch(*command.split())
    assert code == 2 and errors.startswith("error: ") and errors.count("\n") == 1 and "choose another file" in errors
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("name", ["run/report.html", "run/new.html", "new", "old.htm", "recipes/features/x.html"])
def test_other_files_are_written(toy_shards, tmp_path, monkeypatch, name):
    """Also a new one in a run directory, and one in a folder of recipes that has a `recipe.yaml`."""
    monkeypatch.chdir(tmp_path)
    make_saved_run(tmp_path / "run", toy_shards(*CLASSES), {4: (0.5, 0.25)})
    Path("recipes").mkdir()
    for file in ("run/report.html", "old.htm", "recipes/recipe.yaml"):
        Path(file).touch()
    check_output(Path(name), PAGE_ENDINGS, (tmp_path / "run", Path("missing")))
