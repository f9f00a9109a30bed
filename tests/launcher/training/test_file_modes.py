"""All files of a run follow the user's umask, whatever library writes them: colleagues can read them, or nobody can."""

import os
import stat
from pathlib import Path

import pytest

from recipes.schema import Recipe
from tests.launcher.process_group import Group


def train_export_and_report(recipe: Recipe, run: Path, mask: int) -> None:
    from launcher.evaluation.export import export
    from launcher.runs.report import write_report
    from launcher.runs.run_directory import RunDirectory
    from launcher.training.train import StartOptions, train

    os.umask(mask)
    train(recipe, run, StartOptions(micro_batch=64, workers=0, profile=1))
    export(RunDirectory(run), run / "exported.safetensors")
    write_report([run], run / "report.html")


@pytest.mark.slow
@pytest.mark.parametrize("mask", [0o022, 0o077], ids=["022", "077"])
def test_every_file_of_a_run_follows_the_umask(small_recipe, tmp_path, mask):
    run = tmp_path / "run"
    recipe = small_recipe("schedule.epochs=1", "schedule.warmup_epochs=0", "run.evaluate_every=1", "batch.global=256")
    Group(1, recipe, run, train_export_and_report, mask=mask).finish()
    modes = {path.relative_to(run): stat.S_IMODE(path.stat().st_mode) for path in run.rglob("*") if path.is_file()}
    written = {path.suffix for path in modes}
    assert written >= {".yaml", ".json", ".jsonl", ".safetensors", ".html", ".gz", ".txt", ""}  # "": the lock
    assert any("tfevents" in path.name for path in modes)
    assert {path: oct(mode) for path, mode in modes.items() if mode != 0o666 & ~mask} == {}
    folders = {path: oct(stat.S_IMODE(path.stat().st_mode)) for path in run.rglob("*") if path.is_dir()}
    assert set(folders.values()) == {oct(0o777 & ~mask)}, folders
