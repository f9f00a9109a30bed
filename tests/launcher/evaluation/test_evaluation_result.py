"""Evaluation as papers report it: scores of classes, calibration, intervals, subsets, several right labels."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from data.batches import EvalBatches
from data.on_device import DevicePreprocessor
from data.reading.shards import ShardSet
from data.writing.sharding import shard
from launcher.evaluation.evaluate import EvaluateOptions, evaluate
from launcher.evaluation.right_labels import _image_name, _real_labels
from launcher.runs.class_scores import class_scores, expected_calibration_error
from recipes.errors import UserError
from recipes.load import load
from tests.command_line import run_command
from tests.launcher.saved_runs import CLASSES, TINY, make_saved_run, tiny_model, write_weights

WORDNET = ("n01440764", "n01443537", "n01484850")  # the first three classes of ImageNet-1K


def test_scores_of_classes():
    cat, dog, elk = class_scores(["cat", "dog", "elk"], [(0, 0, 6), (0, 1, 2), (1, 0, 1), (1, 1, 3)])
    assert (cat.images, cat.precision, cat.recall, cat.f1) == pytest.approx((8, 6 / 7, 6 / 8, 12 / 15))
    assert (dog.images, dog.precision, dog.recall, dog.f1) == pytest.approx((4, 3 / 5, 3 / 4, 6 / 9))
    assert (elk.images, elk.precision, elk.recall, elk.f1) == (0, None, None, None)


def test_calibration_error():
    """Two bins: 4 images at 0.9, of which 2 are right; 6 at 0.5, of which 3 are right."""
    probabilities, right = np.array([0.9] * 4 + [0.5] * 6), np.array([1, 1, 0, 0, 1, 1, 1, 0, 0, 0], dtype=bool)
    assert expected_calibration_error(probabilities, right) == pytest.approx(0.4 * 0.4)
    assert expected_calibration_error(np.ones(3), np.ones(3, dtype=bool)) == 0


def masked(model, shards, classes: list[int]) -> tuple[float, float]:
    """Top-1 and loss of a model whose other logits are masked, computed image by image."""
    recipe, split = load("demo", TINY), ShardSet.open(shards).split("val")
    logits, labels = [], []
    for pixels, some in EvalBatches(split, recipe, 0, len(split), 4):
        with torch.no_grad():
            logits.append(model(DevicePreprocessor(recipe, torch.device("cpu")).normalised(pixels)))
        labels.append(some)
    outputs, targets = torch.cat(logits), torch.tensor(classes)[torch.cat(labels)]
    keep = torch.zeros(outputs.shape[1], dtype=torch.bool)
    keep[classes] = True
    outputs[:, ~keep] = -torch.inf
    return (outputs.argmax(1) == targets).float().mean().item(), F.cross_entropy(outputs, targets).item()


def test_a_subset_of_classes_equals_masked_logits(toy_shards, tmp_path):
    """In another order, too. Without the option it is refused, and the message names the option."""
    wanted, model = ("dog", "bee"), tiny_model(3)
    file = write_weights(tmp_path / "w.safetensors", model, CLASSES)
    data = [f"data.path={toy_shards(*wanted)}"]
    with pytest.raises(UserError, match="add --subset"):
        evaluate(file, overrides=data, options=EvaluateOptions(workers=0))
    (found,) = evaluate(file, overrides=data, options=EvaluateOptions(workers=0, subset=True))
    names = ShardSet.open(toy_shards(*wanted)).classes
    top1, loss = masked(model, toy_shards(*wanted), [CLASSES.index(name) for name in names])
    assert found.accuracy.top1 == pytest.approx(top1) and found.accuracy.loss == pytest.approx(loss, rel=1e-5)
    assert [scores.name for scores in found.classes] == list(names)


@pytest.mark.parametrize("outputs", [1000, 21841])
def test_an_imagenet_model_without_class_names_is_matched_by_wordnet_ids(toy_shards, tmp_path, outputs):
    """A model for 22K classes on those of ImageNet-1K: timm has the lists."""
    from timm.data import ImageNetInfo, infer_imagenet_subset

    model = tiny_model(0, outputs)
    file = write_weights(tmp_path / "w.safetensors", model)
    options = EvaluateOptions(workers=0, subset=True)
    (found,) = evaluate(file, overrides=[f"data.path={toy_shards(*WORDNET)}"], options=options)
    ids = ImageNetInfo(infer_imagenet_subset(model)).label_names()
    top1, loss = masked(model, toy_shards(*WORDNET), [ids.index(name) for name in WORDNET])
    assert found.accuracy.top1 == pytest.approx(top1) and found.accuracy.loss == pytest.approx(loss, rel=1e-5)


def test_several_right_labels(toy_shards, tmp_path):
    file = write_weights(tmp_path / "w.safetensors", tiny_model(1), CLASSES)
    data, split = [f"data.path={toy_shards(*CLASSES)}"], ShardSet.open(toy_shards(*CLASSES)).split("val")
    names = [split.sample_name(sample).rpartition(" in ")[0].rpartition("/")[2] for sample in range(len(split))]
    labels = tmp_path / "labels.json"
    labels.write_text(json.dumps(dict.fromkeys(names[:-2], CLASSES) | dict.fromkeys(names[-2:], [])))
    options = EvaluateOptions(workers=0, right_labels=str(labels))
    (found,) = evaluate(file, overrides=data, options=options)
    assert found.right_labels == (1.0, len(set(names[:-2]))) and "any right label 100.00%" in found.line()
    labels.write_text(json.dumps({"other": ["cat"]}))
    with pytest.raises(UserError, match="has labels for none of the images"):
        evaluate(file, overrides=data, options=options)


def test_reassessed_labels_of_imagenet_come_from_timm():
    labels = _real_labels()
    assert len(labels) == 50_000 and not labels["1"] and len(labels["2"]) == 2
    assert _image_name("ILSVRC2012_val_00000002.jpg in val-000000.tar", "real") == "2"


def test_real_on_validation_images_of_imagenet_from_a_folder_to_json(tmp_path, monkeypatch, capsys):
    """Class folders named by WordNet id, as users have them, with three of the 1,000 classes, as ImageNet-R has 200."""
    real = _real_labels()
    numbers = [number for name in WORDNET for number in [one for one in real if name in real[one]][:2]] + ["1"]
    for place, number in enumerate(numbers):
        image = tmp_path / "images" / WORDNET[place % 3] / f"ILSVRC2012_val_{int(number):08}.JPEG"
        image.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(place).integers(0, 256, (40, 40, 3), dtype=np.uint8)
        Image.fromarray(noise).save(image)
    shard(str(tmp_path / "images"), tmp_path / "shards", val_fraction=0, progress=False)
    file = write_weights(tmp_path / "w.safetensors", tiny_model(0, 1000))
    options = ("--split", "train", "--subset", "--right-labels", "real", "--json", "--workers", 0)
    assert run_command(monkeypatch, "evaluate", file, "--data", tmp_path / "shards", *options) == 0
    found = json.loads(capsys.readouterr().out)
    split = ShardSet.open(tmp_path / "shards").split("train")
    [(pixels, _)] = EvalBatches(split, load("demo", TINY), 0, len(split), len(split))
    with torch.no_grad():
        outputs = tiny_model(0, 1000)(DevicePreprocessor(load("demo", TINY), torch.device("cpu")).normalised(pixels))
    guesses = outputs[:, :3].argmax(1).tolist()  # WORDNET is the first three classes
    named = {_image_name(split.sample_name(sample), "real"): WORDNET[guess] for sample, guess in enumerate(guesses)}
    right = sum(named[number] in real[number] for number in numbers)
    assert 0 < right < 6
    assert found["images"] == 7 and found["right_labels"]["images"] == 6  # image 1 has no right label
    assert found["right_labels"]["top1"] == pytest.approx(right / 6, abs=1e-4)


def test_json_has_intervals_and_scores_of_classes(toy_shards, tmp_path, monkeypatch, capsys):
    run = make_saved_run(tmp_path / "run", toy_shards(*CLASSES), {4: (0.5, 0.25)})
    for option in ("--json", "--per-class"):
        assert run_command(monkeypatch, "evaluate", run.path, "--workers", 0, option) == 0
        output = capsys.readouterr().out
        if option == "--json":
            raw, ema = map(json.loads, output.splitlines())
            low, high = raw["top1_interval"]
            assert (raw["weights"], ema["weights"]) == ("raw", "EMA") and low <= raw["top1"] <= high
            assert [scores["name"] for scores in ema["classes"]] == list(CLASSES)
        else:
            assert "precision" in output and "ECE" in output and all(name in output for name in CLASSES)
