"""`bigbatch compare` and the report say how runs differ on the same images."""

import json
from pathlib import Path

import numpy as np
import pytest

from data.reading.shards import ShardSet
from launcher.runs.comparison import compare_runs, group_by_seed
from launcher.runs.predictions import Predictions, read_predictions, write_predictions
from launcher.runs.report import write_report
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError
from tests.launcher.runs.test_report import Page, make_run
from tests.launcher.saved_runs import CLASSES

WRONG = {"first": [0, 1, 2], "second": [2, 3]}  # images that each run gets wrong


def predict(run: Path, shards: Path, wrong: list[int], **values) -> Path:
    """Give a run the predictions of an evaluation: right but for some images, whose next class is predicted."""
    found = ShardSet.open(shards)
    labels = np.asarray(found.split("val").labels)
    guesses = np.array([(label + (image in wrong)) % len(CLASSES) for image, label in enumerate(labels)])
    about = {"weights": "EMA", "step": 40, "dataset": found.name, "digest": found.digest, "split": "val", **values}
    probabilities = np.linspace(0.5, 0.9, len(labels))
    write_predictions(
        RunDirectory(run), Predictions(**about, labels=labels, guesses=guesses, probabilities=probabilities)
    )
    return run


@pytest.fixture
def runs(tmp_path, toy_shards) -> list[Path]:
    shards = toy_shards(*CLASSES)
    return [
        predict(make_run(tmp_path / name, f"data.path={shards}", f"seed={seed}"), shards, wrong)
        for seed, (name, wrong) in enumerate(WRONG.items())
    ]


def test_runs_are_compared_image_by_image(runs):
    first, second = compare_runs(runs)
    assert (first.top1, second.top1) == (5 / 8, 6 / 8) and first.difference is None
    assert (second.difference.only_first, second.difference.only_second) == (1, 2)
    assert second.difference.difference == pytest.approx(1 / 8)


def test_predictions_take_a_few_bytes_an_image(tmp_path):
    run, images = make_run(tmp_path / "run"), 50_000
    random = np.random.default_rng(0)
    numbers = {name: random.integers(0, 1000, images) for name in ("labels", "guesses")}
    kept = Predictions("raw", 3, "in1k", "d" * 64, "val", **numbers, probabilities=random.random(images))
    assert write_predictions(RunDirectory(run), kept).stat().st_size < 6 * images + 2000
    (read,) = read_predictions(RunDirectory(run))
    assert (read.weights, read.step, read.images) == ("raw", 3, ("d" * 64, "val"))
    assert (read.labels == kept.labels).all() and (read.guesses == kept.guesses).all()
    assert np.abs(read.probabilities - kept.probabilities).max() < 1e-3


def test_only_the_same_images_are_compared(runs, toy_shards, tmp_path):
    with pytest.raises(UserError, match="at least two runs"):
        compare_runs(runs[:1])
    other = make_run(tmp_path / "other")
    with pytest.raises(UserError, match=f"bigbatch evaluate {other} --split val` first"):
        compare_runs([*runs, other])
    predict(other, toy_shards("ant", "bee", "cow", "dog"), [])
    with pytest.raises(UserError, match=f"evaluate {other} --data .*ant bee cat dog. --split val` first"):
        compare_runs([*runs, other])
    predict(runs[0], toy_shards("ant", "bee", "cow", "dog"), [])  # now each of the others has images in common with it
    with pytest.raises(UserError, match=f"evaluate {runs[1]} --data .*ant bee cat dog. --split val` first"):
        compare_runs([*runs, other])
    with pytest.raises(UserError, match="first is given twice"):
        compare_runs([*runs, tmp_path / "second" / ".." / "first"], "val")


def test_seeds_of_one_recipe_are_one_group(runs, toy_shards, tmp_path):
    shards = toy_shards(*CLASSES)
    others = [
        predict(make_run(tmp_path / f"other-{seed}", "optimizer.lr=1e-5", f"seed={seed}"), shards, wrong)
        for seed, wrong in enumerate(([0], [], [1]))
    ]
    groups = group_by_seed(compare_runs([runs[0], others[0], runs[1], *others[1:]]))
    assert [group.runs for group in groups] == [list(map(str, runs)), list(map(str, others))]
    assert groups[0].spread.mean == pytest.approx((5 / 8 + 6 / 8) / 2)
    assert groups[1].difference.difference == pytest.approx((7 + 8 + 7) / 24 - 11 / 16)


def test_the_command_prints_a_table_or_json(runs, bigbatch):
    code, shown, _ = bigbatch("compare", *runs, "--seeds")
    assert code == 0 and "75.00%" in shown and "+12.50" in shown and "group 1: 68.75% ± 6.25" in shown
    code, shown, _ = bigbatch("compare", *runs, "--json")
    found = json.loads(shown)
    assert code == 0 and found["runs"][1]["difference_to_first"]["only_second"] == 2


def test_the_report_shows_the_images_on_which_runs_disagree(runs, tmp_path):
    page = Page(write_report(runs, tmp_path / "page.html").read_text())
    assert "only first gets right: 1; only second: 2" in page.text and page.seen.count("img") == 3
    recipe = RunDirectory(runs[0]).recipe()
    RunDirectory(runs[0]).write(recipe.variant(data={"path": "/nowhere"}), RunDirectory(runs[0]).metadata())
    page = Page(write_report(runs, tmp_path / "page.html").read_text())
    assert "only second: 2" in page.text and page.seen.count("img") == 0
