"""Exports are used by programs that do not import bigbatch: timm, onnxruntime and torch alone."""

import subprocess
import sys
from pathlib import Path

import pytest

from launcher.evaluation import export_graph
from launcher.evaluation.export import export
from launcher.runs.intervals import wilson_interval, with_interval
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError
from tests.launcher.saved_runs import CLASSES, make_saved_run, tiny_model

TIMM = """
import sys, timm, torch
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
config = timm.data.resolve_model_data_config(model)
timm.data.create_transform(**config, is_training=False)
assert model.pretrained_cfg["label_names"] == sys.argv[3].split(","), model.pretrained_cfg
mean, std = (torch.tensor(config[name]).reshape(1, 3, 1, 1) for name in ("mean", "std"))
images = torch.load(sys.argv[2])
logits = model((images - mean) / std).detach()
"""
ONNX = """
import json, sys, onnxruntime, torch
session = onnxruntime.InferenceSession(sys.argv[1])
assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == sys.argv[3].split(",")
images = torch.load(sys.argv[2])
logits = torch.from_numpy(session.run(None, {"images": images.numpy()})[0])
"""
PT2 = """
import json, sys, torch
files = {"classes": ""}
model = torch.export.load(sys.argv[1], extra_files=files).module()
assert json.loads(files["classes"]) == sys.argv[3].split(",")
images = torch.load(sys.argv[2])
logits = model(images).detach()
"""
CHECK = """
assert not any(name.split(".")[0] in ("bigbatch", "launcher", "recipes", "models") for name in sys.modules)
assert (logits - torch.load(sys.argv[2] + ".expected")).abs().max() < 1e-4
"""


@pytest.fixture(scope="module")
def run(toy_shards, tmp_path_factory) -> RunDirectory:
    return make_saved_run(tmp_path_factory.mktemp("export") / "run", toy_shards(*CLASSES), {4: (0.5, 0.25)})


@pytest.mark.slow
@pytest.mark.parametrize(("name", "script"), [("folder", TIMM), ("m.onnx", ONNX), ("m.pt2", PT2)])
def test_an_export_gives_the_models_logits_without_bigbatch(run, tmp_path, name, script):
    """Any number of images, normalised as the recipe says; class names are in the export."""
    import torch

    export(run, tmp_path / name, ema=False)
    recipe = run.recipe()
    images = torch.rand(5, 3, recipe.input.size, recipe.input.size)
    mean, std = (torch.tensor(value).reshape(1, 3, 1, 1) for value in (recipe.input.mean, recipe.input.std))
    with torch.no_grad():
        expected = tiny_model(4).eval()((images - mean) / std)
    torch.save(images, tmp_path / "images")
    torch.save(expected, tmp_path / "images.expected")
    arguments = [tmp_path / name, tmp_path / "images", ",".join(CLASSES)]
    done = subprocess.run([sys.executable, "-P", "-c", script + CHECK, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_folder_has_a_model_card_and_is_written_again(run, tmp_path):
    export(run, tmp_path / "folder")
    export(run, tmp_path / "folder")
    card = (tmp_path / "folder" / "README.md").read_text()
    images = run.metadata().dataset.val_images
    assert "library_name: timm" in card and with_interval(0.25, images) in card and "## Recipe" in card


def test_an_export_that_would_be_wrong_or_in_the_way_is_refused(run, tmp_path, monkeypatch):
    with pytest.raises(UserError, match=r"ends in .safetensors, .onnx or .pt2"):
        export(run, tmp_path / "weights.pth")
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").touch()
    with pytest.raises(UserError, match="holds other files"):
        export(run, tmp_path / "photos")
    monkeypatch.setattr(export_graph, "_pt2_runner", lambda path: lambda images: images.sum() * 0 + 7)
    with pytest.raises(UserError, match="differs from torch"):
        export(run, tmp_path / "m.pt2")
    assert not list(Path(tmp_path).glob("m.pt2*"))
    monkeypatch.setattr(export_graph, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"pip install 'bigbatch\[onnx\]'"):
        export(run, tmp_path / "m.onnx")


@pytest.mark.parametrize(
    ("right", "images", "low", "high"), [(0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (81, 263, 0.2553, 0.3662)]
)
def test_intervals_are_wilsons(right, images, low, high):
    """The third is the example of Newcombe (1998), method 3."""
    assert wilson_interval(right / images, images) == pytest.approx((low, high), abs=1e-4)
