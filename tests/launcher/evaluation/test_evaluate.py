"""Mistakes are kept by data set and split; the report shows those on the run's own data, and others by their names."""

import json
import shutil

import pytest
import torch
from torch import nn

from data.reading.shards import ShardSet
from launcher.evaluation.accuracy import evaluated_logits
from launcher.evaluation.evaluate import EvaluateOptions, evaluate
from launcher.runs.mistakes import read_mistakes
from launcher.runs.report import write_report
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError
from recipes.load import load
from tests.launcher.runs.test_report import Page
from tests.launcher.saved_runs import CLASSES, make_saved_run


@pytest.fixture
def run(toy_shards, tmp_path) -> RunDirectory:
    return make_saved_run(tmp_path / "run", toy_shards(*CLASSES), {4: (0.5, 0.25), 8: (0.5, 0.25)})


def evaluate_run(run: RunDirectory, *overrides: str, **options) -> str:
    results = evaluate(run.path, None, overrides, EvaluateOptions(workers=0, **options))
    return "\n".join(result.line() for result in results)


def test_other_data_does_not_replace_the_mistakes_on_the_runs_own(run, toy_shards):
    evaluate_run(run)
    own = run.mistakes_file.read_bytes()
    evaluate_run(run, f"data.path={toy_shards(*reversed(CLASSES))}")
    assert "12 images of split train" in evaluate_run(run, split_name="train")
    assert run.mistakes_file.read_bytes() == own
    found, others = read_mistakes(run)
    shards = ShardSet.open(toy_shards(*CLASSES))
    assert (found.split, found.digest, found.images, found.weights, found.step) == ("val", shards.digest, 8, "EMA", 8)
    assert sorted((other.digest == shards.digest, other.split, other.images) for other in others) == [
        (False, "val", 8),
        (True, "train", 12),
    ]


def test_an_evaluation_replaces_the_one_before_on_the_same_split(run):
    for step in (4, 8):
        evaluate_run(run, split_name="train", step=step, ema=False)
    own, others = read_mistakes(run)
    assert own is None and [(other.step, other.weights) for other in others] == [(8, "raw")]


def test_the_report_shows_the_runs_own_mistakes_and_names_the_others(run, toy_shards, tmp_path):
    evaluate_run(run)
    evaluate_run(run, f"data.path={toy_shards(*reversed(CLASSES))}", split_name="train")
    page = Page(write_report([run.path], tmp_path / "page.html").read_text())
    own, others = page.text.split("Mistakes on other data", 1)
    assert "of 8 validation images are wrong with the EMA weights of step 8" in own
    assert others.startswith(f": {ShardSet.open(toy_shards(*reversed(CLASSES))).name}, split train")
    assert "of 12 train images are wrong" in others


def test_mistakes_that_version_0_1_0_kept_are_shown(run, tmp_path):
    """It did not say which data it was: only other classes give other data away."""
    evaluate_run(run)
    contents = json.loads(run.mistakes_file.read_text())
    for new in ("step", "dataset", "digest", "split"):
        del contents[new]
    run.mistakes_file.write_text(json.dumps(contents | {"weights": "averaged"}))
    own, others = read_mistakes(run)
    assert own.weights == "EMA" and own.step is None and others == []
    page = Page(write_report([run.path], tmp_path / "page.html").read_text())
    assert "of 8 validation images are wrong with the EMA weights (" in page.text
    run.mistakes_file.write_text(json.dumps(contents | {"classes": ["a", "b", "c", "d"]}))
    own, others = read_mistakes(run)
    assert own is None and [other.classes for other in others] == [["a", "b", "c", "d"]]


@pytest.mark.parametrize("damage", [b"", b"[]", b"{}", b"\xff\xfe", b'{"time": 1}'])
def test_damaged_mistakes_are_left_out(run, tmp_path, damage):
    run.mistakes_file.write_bytes(damage)
    run.other_mistakes.mkdir()
    (run.other_mistakes / "x.json").write_bytes(damage)
    assert read_mistakes(run) == (None, [])
    write_report([run.path], tmp_path / "page.html")


def test_a_run_is_evaluated_at_another_size_than_it_was_trained_at(run, tmp_path):
    def shown(*overrides):
        evaluate_run(run, *overrides, split_name="train")
        return read_mistakes(run)[1][0].surest

    assert shown("input.eval_size=48") == shown("input.size=48") != shown()
    with pytest.raises(UserError, match="takes images of one size: add input.eval_size=null"):
        evaluate_run(run, "model.name=test_vit", "input.eval_size=48")


def test_without_a_validation_split_the_way_to_one_is_said(run, toy_shards, tmp_path):
    shards = shutil.copytree(toy_shards(*CLASSES), tmp_path / "shards")
    manifest = json.loads((shards / "manifest.json").read_text())
    del manifest["splits"]["val"]
    (shards / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="no validation split: .*--split train, or shard again with --val-fraction"):
        evaluate_run(run, f"data.path={shards}")


def test_a_split_that_is_not_there_is_refused_with_those_that_are(run):
    with pytest.raises(UserError, match="no split 'test', only 'train', 'val'"):
        evaluate_run(run, split_name="test")


def test_a_test_split_is_offered_in_one_line(run, toy_shards, tmp_path, capsys):
    shards = shutil.copytree(toy_shards(*CLASSES), tmp_path / "shards")
    manifest = json.loads((shards / "manifest.json").read_text())
    manifest["splits"]["test"] = manifest["splits"]["val"]
    (shards / "manifest.json").write_text(json.dumps(manifest))
    data = f"data.path={shards}"
    evaluate_run(run, data)
    assert f"note: {shards} has a test split of 8 images too: add --split test\n" in capsys.readouterr().err
    evaluate_run(run, data, split_name="test")
    assert "--split" not in capsys.readouterr().err
    del manifest["splits"]["val"]
    (shards / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="no validation split, but a test split: add --split test"):
        evaluate_run(run, data)


def test_a_run_that_cannot_be_written_is_evaluated_all_the_same(run, capsys):
    run.mistakes_file.mkdir()
    assert "top-1" in evaluate_run(run)
    assert "the report will not show them" in capsys.readouterr().err


def test_with_eval_flip_an_image_and_its_mirror_image_have_the_same_logits():
    images, model = torch.rand(2, 3, 4, 4), nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    plain, flipping = load("demo"), load("demo", ["input.eval_flip=true"])
    one, other = (evaluated_logits(model, view, flipping) for view in (images, images.flip(-1)))
    torch.testing.assert_close(one, other)
    torch.testing.assert_close(one, (model(images) + model(images.flip(-1))) / 2)
    torch.testing.assert_close(evaluated_logits(model, images, plain), model(images))
