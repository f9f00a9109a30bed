"""`bigbatch features` writes what the classifier receives, in the order of the shards, with names and labels."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from data.batches import EvalBatches
from data.on_device import DevicePreprocessor
from data.reading.shards import ShardSet
from data.writing.sharding import shard
from launcher.cli.main import app
from launcher.evaluation.feature_extractor import FeatureExtractor
from launcher.evaluation.features import write_features
from recipes.errors import UserError
from tests.launcher.saved_runs import CLASSES, make_saved_run, tiny_model, write_weights


@pytest.fixture
def run(toy_shards, tmp_path):
    return make_saved_run(tmp_path / "run", toy_shards(*CLASSES), {8: (0.5, 0.25)})


def test_the_classifier_applied_to_the_features_gives_the_models_outputs(run, toy_shards, tmp_path):
    shards = ShardSet.open(toy_shards(*CLASSES))
    assert write_features(str(run.path), str(shards.root), tmp_path / "out.npz", ema=False, workers=0) == (20, 64, 0)
    with np.load(tmp_path / "out.npz", allow_pickle=False) as file:
        found = dict(file)
    assert found["features"].dtype == np.float32 and list(found["classes"]) == list(CLASSES)
    model, recipe, first = tiny_model(8), run.recipe(), 0
    for name, split in shards.splits.items():
        part = slice(first, first := first + len(split))
        if not len(split):
            continue
        (pixels, labels), *_ = EvalBatches(split, recipe, 0, len(split), 64)
        with torch.inference_mode():
            logits = model(DevicePreprocessor(recipe, torch.device("cpu")).normalised(pixels))
            ours = model.get_classifier()(torch.from_numpy(found["features"][part]))
        torch.testing.assert_close(ours, logits)
        assert found["labels"][part].tolist() == labels.tolist() and set(found["splits"][part]) == {name}
        assert list(found["ids"][part]) == [split.sample_name(sample) for sample in range(len(split))]


def test_a_weights_file_and_other_classes_give_the_same_features(run, toy_shards, tmp_path):
    """Features are of the backbone, so the head may be for other classes."""
    shards = str(toy_shards("ant", "bee", "cat"))
    file = write_weights(tmp_path / "weights.safetensors", tiny_model(8), CLASSES)
    write_features(str(run.path), shards, tmp_path / "run.npz", ema=False, workers=0)
    write_features(str(file), shards, tmp_path / "file.npz", workers=0)
    one, other = (np.load(tmp_path / name)["features"] for name in ("run.npz", "file.npz"))
    assert len(one) == 15 and np.array_equal(one, other)


def test_a_timm_model_by_its_name_views_images_as_its_weights_want(toy_shards, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "launcher.evaluation.features.timm_pretrained", lambda name, say: tiny_model(1, 1000).state_dict()
    )
    images, values, _ = write_features(
        "test_convnext.r160_in1k", str(toy_shards(*CLASSES)), tmp_path / "a.npz", workers=0
    )
    assert (images, values) == (20, 64)


def test_a_folder_of_images_has_the_features_that_its_shards_have(run, tmp_path):
    """Images that cannot be read are named and left out, and the exit code says so."""
    folder = tmp_path / "photos"
    for number in range(5):
        (folder / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(number).integers(0, 256, (40, 60, 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"class{number % 2}" / f"{number}.png")
    shard(str(folder), tmp_path / "shards", val_fraction=0.4, progress=False)
    write_features(str(run.path), str(tmp_path / "shards"), tmp_path / "shards.npz", workers=0)
    (folder / "class0" / "broken.jpg").write_bytes(b"no image")
    result = CliRunner().invoke(app, ["features", str(run.path), str(folder), str(tmp_path / "folder.npz")])
    assert result.exit_code == 1 and "5 images with 64 features each" in result.stdout
    assert "broken.jpg" in result.stderr and "1 of 6 images could not be read" in result.stderr
    ours, theirs = (dict(np.load(tmp_path / name)) for name in ("folder.npz", "shards.npz"))
    assert ours.keys() == {"features", "ids"} and ours["ids"].tolist() == sorted(map(str, folder.glob("*/?.png")))
    by_name = {name.partition("_")[2].partition(" ")[0]: row for name, row in zip(theirs["ids"], theirs["features"])}
    for name, row in zip(ours["ids"], ours["features"]):
        np.testing.assert_allclose(row, by_name[Path(name).name], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("folder", [False, True])
def test_an_interrupted_command_goes_on_where_it_was(run, tmp_path, monkeypatch, folder):
    """Only the parts that are missing are computed, and with other weights all of them."""
    monkeypatch.setattr("data.feature_store._PART_BATCHES", 1)
    photos, computed = tmp_path / "photos", []
    for number in range(150):
        (photos / f"class{number % 2}").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (40, 40), (number, 0, 0)).save(photos / f"class{number % 2}" / f"{number:03}.png")
    shard(str(photos), tmp_path / "shards", val_fraction=0.1, progress=False)
    data = str(photos if folder else tmp_path / "shards")
    once = FeatureExtractor.__call__

    def extract(self, pixels):
        if len(computed) == limit:
            raise KeyboardInterrupt
        computed.append(len(pixels))
        return once(self, pixels)

    limit = None
    monkeypatch.setattr(FeatureExtractor, "__call__", extract)
    write_features(str(run.path), data, tmp_path / "whole.npz", workers=0)
    all_batches, limit = len(computed), len(computed) + 2
    with pytest.raises(KeyboardInterrupt):
        write_features(str(run.path), data, tmp_path / "a.npz", workers=0)
    assert not (tmp_path / "a.npz").exists()
    limit = 2 * all_batches
    write_features(str(run.path), data, tmp_path / "a.npz", workers=0)
    assert len(computed) == limit and not list(tmp_path.glob("*.parts"))
    ours, expected = (dict(np.load(tmp_path / name)) for name in ("a.npz", "whole.npz"))
    assert ours.keys() == expected.keys() and all(np.array_equal(ours[key], expected[key]) for key in expected)
    limit += 2
    with pytest.raises(KeyboardInterrupt):
        write_features(str(run.path), data, tmp_path / "b.npz", workers=0)
    limit = None
    write_features(str(run.path), data, tmp_path / "b.npz", ema=False, workers=0)
    assert len(computed) == 3 * all_batches + 2


def test_mistakes_are_one_sentence(run, toy_shards, tmp_path):
    shards = str(toy_shards(*CLASSES))
    with pytest.raises(UserError, match="does not end in that: name it .*out.npz"):
        write_features(str(run.path), shards, tmp_path / "out")
    with pytest.raises(UserError, match="there is no run or weights file nothing"):
        write_features("nothing", shards, tmp_path / "a.npz")


def test_the_command_says_what_it_wrote(run, toy_shards, tmp_path):
    arguments = ["features", str(run.path), str(toy_shards(*CLASSES)), str(tmp_path / "a.npz"), "--workers", "0"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0 and "20 images with 64 features each" in result.stdout
