"""Labels that are likely wrong are found, and shown in a page and in a table."""

import csv

import numpy as np
import pytest

from data.reading.shards import ShardSet
from launcher.runs.label_page import suspected_labels, write_label_page
from launcher.runs.predictions import Predictions
from launcher.runs.run_directory import RunDirectory
from tests.launcher.runs.test_report import Page, make_run
from tests.launcher.saved_runs import CLASSES


def predicted(labels, guesses, probabilities, digest: str = "d" * 64) -> Predictions:
    arrays = {"labels": np.array(labels), "guesses": np.array(guesses), "probabilities": np.array(probabilities)}
    return Predictions("EMA", 40, "toy", digest, "train", **arrays)


def test_a_label_is_suspected_where_the_model_is_as_sure_as_usual_of_another_class():
    """Class 1 is predicted correctly with 0.8 on average; class 2 never is, so nothing is known about it."""
    found = suspected_labels(
        predicted([1, 1, 0, 0, 0, 0, 1], [1, 1, 1, 1, 0, 2, 0], [0.7, 0.9, 0.81, 0.79, 0.6, 0.99, 0.9])
    )
    assert found.tolist() == [6, 2]


def test_labels_that_were_swapped_are_found_among_noisy_predictions():
    random, classes, images = np.random.default_rng(0), 10, 5000
    truth = random.integers(0, classes, images)
    labels, wrong = truth.copy(), random.choice(images, 100, replace=False)
    labels[wrong] = (truth[wrong] + random.integers(1, classes, 100)) % classes
    hard = random.random(images) < 0.1  # where the model guesses, and is not sure of it
    guesses = np.where(hard, random.integers(0, classes, images), truth)
    probabilities = np.where(hard, random.uniform(0.3, 0.7, images), random.uniform(0.8, 1.0, images))
    found = suspected_labels(predicted(labels, guesses, probabilities))
    assert np.isin(found, wrong).all() and len(found) > 40


def test_the_page_shows_them_and_the_table_names_them(tmp_path, toy_shards):
    shards = ShardSet.open(toy_shards(*CLASSES))
    split = shards.split("train")
    labels = np.asarray(split.labels)
    guesses, probabilities = labels.copy(), np.full(len(labels), 0.8)
    guesses[3], probabilities[3] = (labels[3] + 1) % len(CLASSES), 0.9
    run = RunDirectory(make_run(tmp_path / "run"))
    path, count = write_label_page(run, predicted(labels, guesses, probabilities, shards.digest), shards, split)
    page = Page(path.read_text())
    assert count == 1 and f"1 of {len(labels)} images" in page.text and page.seen.count("img") == 1
    (row,) = csv.DictReader(path.with_suffix(".csv").open())
    assert row["image"] == split.sample_name(3) and row["label"] == CLASSES[labels[3]]
    assert row["predicted"] == CLASSES[guesses[3]] and float(row["probability"]) == pytest.approx(0.9)


def test_evaluating_the_training_split_writes_them(bigbatch, tmp_path, toy_shards):
    from tests.launcher.saved_runs import make_saved_run

    shards = toy_shards(*CLASSES)
    make_saved_run(tmp_path / "run", shards, {4: (0.5, None)})
    code, _, error = bigbatch("evaluate", tmp_path / "run", "--split", "train", "--workers", 0)
    assert code == 0 and "labels that are likely wrong: " in error
    assert len(list((tmp_path / "run" / "labels").iterdir())) == 2
