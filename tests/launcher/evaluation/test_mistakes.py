"""The confusion matrix and the surest mistakes are those of the guesses, and the report shows them."""

import base64
import io
import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from sklearn.metrics import confusion_matrix

from data.reading.shards import ShardSet
from launcher.evaluation.prediction_recorder import PredictionRecorder
from launcher.runs.mistakes import Mistakes, read_mistakes, write_mistakes
from launcher.runs.report import write_report
from launcher.runs.run_directory import RunDirectory
from tests.launcher.runs.test_report import Page, make_run


@pytest.fixture(scope="module")
def judged(digits):
    """Random guesses about the digits, and what is wrong with them."""
    shards = ShardSet.open(digits)
    split, guesses = shards.split("val"), PredictionRecorder()
    logits = 3 * torch.randn(len(split), 10, generator=torch.Generator().manual_seed(0))
    for batch in logits.split(50):
        guesses(batch)
    return shards, logits.softmax(dim=1).max(dim=1), guesses.compared_with(split)


def of_run(run: Path, found: dict, **values) -> Mistakes:
    """What was found as if it were about a run's own validation split."""
    dataset = RunDirectory(run).metadata().dataset
    return Mistakes(
        **{**found, "classes": dataset.classes, "digest": dataset.digest, "dataset": dataset.name, **values}
    )


def test_every_image_is_counted_once_where_it_belongs(judged):
    shards, best, found = judged
    split = shards.split("val")
    expected = confusion_matrix(split.labels, best.indices.numpy(), labels=range(10))
    counted = {(label, guess): count for label, guess, count in found["confusion"]}
    assert counted == {(i, j): int(expected[i, j]) for i in range(10) for j in range(10) if expected[i, j]}
    assert (found["images"], found["wrong"]) == (len(split), len(split) - int(expected.trace()))


def test_the_surest_mistakes_come_first_and_with_their_own_pictures(judged):
    shards, best, found = judged
    split, surest = shards.split("val"), found["surest"]
    wrong = best.values[best.indices != torch.from_numpy(split.labels.astype("int64"))]
    assert [one["probability"] for one in surest] == pytest.approx(
        wrong.sort(descending=True).values[:24].tolist(), abs=1e-4
    )
    names = {split.sample_name(sample): sample for sample in range(len(split))}
    for one in surest[:3]:
        sample = names[one["name"]]
        assert (one["label"], one["guess"]) == (split.labels[sample], best.indices[sample]) and one["label"] != one[
            "guess"
        ]
        shown = Image.open(io.BytesIO(base64.b64decode(one["picture"]))).convert("L")
        original = Image.open(io.BytesIO(split.read(sample))).convert("L").resize(shown.size)
        difference = [abs(a - b) for a, b in zip(shown.tobytes(), original.tobytes(), strict=True)]
        assert sum(difference) / len(difference) < 8


def test_the_report_shows_them(judged, tmp_path):
    shards, _, found = judged
    run = make_run(tmp_path / "run", classes=[f"<digit {name}>" for name in shards.classes])
    page = Page(write_report([run], tmp_path / "page.html").read_text())
    assert f"bigbatch evaluate {run}" in page.text and "img" not in page.seen
    write_mistakes(RunDirectory(run), of_run(run, found, weights="EMA"))
    page = Page(write_report([run], tmp_path / "page.html").read_text())
    assert f"{found['wrong']} of {found['images']} validation images are wrong with the EMA weights" in page.text
    assert page.seen.count("img") == 24 and all(a.startswith(("#", "data:image/jpeg;base64,")) for a in page.addresses)
    row = [next((c for i, j, c in found["confusion"] if (i, j) == (3, guess)), 0) for guess in range(10)]
    assert f"<digit 3> {' '.join(map(str, row))} <digit 4>" in page.text


def test_with_many_classes_the_report_lists_the_commonest_mistakes(judged, tmp_path):
    shards, _, found = judged
    names = [*shards.classes, *(f"class {number}" for number in range(10, 1000))]
    run = make_run(tmp_path / "run", classes=names)
    write_mistakes(RunDirectory(run), of_run(run, found, weights="raw"))
    page = Page(write_report([run], tmp_path / "page.html").read_text())
    label, guess, count = max(
        (entry for entry in found["confusion"] if entry[0] != entry[1]), key=lambda entry: entry[2]
    )
    assert f"Class Predicted class Images {names[label]} {names[guess]} {count}" in page.text
    assert "Rows: the class of the image" not in page.text


@pytest.mark.parametrize(
    "key, value",
    [
        ("images", -1),
        ("images", 0),
        ("wrong", -1),
        ("wrong", 10**6),
        ("time", -1),
        ("time", 1e30),
        ("step", -1),
        ("confusion", [[0, 99, 1]]),
        ("confusion", [[-1, 0, 1]]),
        ("confusion", [[0, 0, -1]]),
        ("surest", [{"name": "x", "label": 0, "guess": 99, "probability": 1.0, "picture": ""}]),
        ("surest", [{"name": "x", "label": 0, "guess": 1, "probability": None, "picture": ""}]),
    ],
)
def test_a_file_with_an_impossible_number_is_skipped_as_a_damaged_one(judged, tmp_path, key, value):
    run = make_run(tmp_path / "run", steps=4)
    found = of_run(run, judged[2], classes=list("0123456789"), weights="raw")
    file = write_mistakes(RunDirectory(run), found)
    assert read_mistakes(RunDirectory(run)) == (found, [])
    file.write_text(json.dumps({**found.model_dump(), key: value}))
    assert read_mistakes(RunDirectory(run)) == (None, [])
    write_report(run, tmp_path / "report.html")
