"""Every recipe of the catalogue can be run: model, parameter groups, cut and schedule; some of each kind do train."""

import re

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import save_file
from sklearn.datasets import load_digits
from torch import nn

from data.writing.sharding import shard
from launcher.checkpoints.writer import CheckpointWriter
from launcher.cli.recipes import print_recipe
from launcher.cut import cut_for_model
from launcher.runs.run_directory import RunDirectory
from launcher.training.train import StartOptions, train
from models import batch_norm, stochastic_depth
from models.build import build, scale_head
from models.parameter_groups import parameter_groups
from recipes.load import load, recipe_names
from recipes.schedule import StepSchedule

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", recipe_names())
def test_a_recipe_builds_its_model_and_can_be_cut_and_timed(name):
    recipe = load(name)
    with torch.device("meta"):
        model = build(recipe, recipe.data.classes or 10)
    assert model.get_classifier().out_features == (recipe.data.classes or 10)
    has_batch_norm = any(isinstance(module, nn.BatchNorm2d) and module.training for module in model.modules())
    has_depth = any(type(module).__name__ == "DropPath" for module in model.modules())
    assert has_depth == (recipe.model.drop_path > 0)
    gammas = [parameter for parameter in dict(model.named_parameters()) if parameter.endswith(".gamma")]
    has_own_layer_scale = recipe.model.name == "convnext_atto"  # timm's default, which the recipe leaves as it is
    assert bool(gammas) == (recipe.model.layer_scale is not None or has_own_layer_scale)

    depth = stochastic_depth.attach(model, recipe.seed)
    assert max(depth.rates, default=0.0) == pytest.approx(recipe.model.drop_path)
    statistics = batch_norm.attach(model, recipe.batch.statistics_size)
    assert (statistics is not None) == has_batch_norm
    groups = parameter_groups(model, recipe.optimizer)
    assert sum(len(group.names) for group in groups) == sum(parameter.requires_grad for parameter in model.parameters())
    scale_head(model, 0.5)

    for processes in (1, 8 if recipe.data.train_images else 1):
        assert cut_for_model(recipe, processes, None, has_batch_norm).padding == 0
    schedule = StepSchedule(recipe, recipe.data.train_images or 2000)
    last = schedule.lr(schedule.total_steps - 1)
    assert last == recipe.optimizer.lr if recipe.schedule.shape == "constant" else last < 0.3 * recipe.optimizer.lr
    assert recipe.data.train_images is None or not schedule.warnings()


@pytest.mark.parametrize("name", recipe_names())
def test_the_page_of_a_recipe_ends_with_its_source_and_accuracy(name, capsys):
    print_recipe(name, [])
    page = capsys.readouterr().out
    last = page[page.rindex("# source:") :]
    source = " ".join(line.removeprefix("# ") for line in last.splitlines())
    assert source == f"source: {load(name).source}"
    assert re.search(r"[0-9]%|no accuracy is published|^source: ours", source)


@pytest.fixture(scope="module")
def few_digits(tmp_path_factory):
    """Twenty handwritten digits in shards, ten classes: two steps of eight images, four for validation."""
    source, images = tmp_path_factory.mktemp("digits"), load_digits().images
    labels = load_digits().target
    for split, count in (("train", 2), ("val", 1)):
        for label in range(10):
            folder = source / split / str(label)
            folder.mkdir(parents=True)
            for number in range(count):
                pixels = images[labels == label][number + 2 * (split == "val")]
                Image.fromarray((pixels * 15).astype("uint8")).save(folder / f"{number}.png")
    destination = tmp_path_factory.mktemp("shards") / "digits"
    shard(str(source), destination, progress=False)
    return destination


SMALL = [
    "data.classes=10",
    "batch.global=8",
    "batch.slices=2",
    "schedule.epochs=1",
    "schedule.warmup_epochs=0",
    "input.size=32",
]


@pytest.mark.parametrize(
    "name, changes",
    [
        ("resnet50_in1k_classic", ["model.name=resnet26"]),
        ("swin_tiny_in1k", []),
        ("roadmap_05_inverted", []),
        ("resnet50_in1k_a2", ["model.name=resnet26", "batch.slices=4"]),
        ("resnet50_in1k_lars_8192", ["model.name=test_resnet"]),
        ("convnext_tiny_in1k_torchvision", ["model.name=test_convnext", "batch.slices=4", "input.eval_size=null"]),
        ("deit3_small_in1k", ["batch.slices=4"]),
        ("convnext_isotropic_large_in1k", ["model.name=test_convnext_isotropic"]),
        ("convnext_xlarge_in22k_in1k", ["model.name=convnext_atto"]),
    ],
)
def test_a_recipe_of_each_kind_trains(name, changes, few_digits, tmp_path, monkeypatch):
    """Two steps of the whole recipe at 32 pixels and an evaluation. Saving is tested elsewhere, and slow here."""
    monkeypatch.setattr(CheckpointWriter, "save", lambda *_: 0.0)
    changes = [*SMALL, *changes, f"data.path={few_digits}"]
    recipe = load(name, changes)
    if recipe.model.weights:
        pretrained = timm.create_model(recipe.model.name, num_classes=1000)
        save_file(pretrained.state_dict(), tmp_path / "pretrained.safetensors")
        recipe = load(name, [*changes, f"model.weights={tmp_path / 'pretrained.safetensors'}"])
    assert train(recipe, tmp_path / "run", StartOptions(workers=0))
    events = RunDirectory(tmp_path / "run").metrics.events()
    losses = [event["loss"] for event in events if event["event"] == "step"]
    assert len(losses) == 2 and all(0 < loss < 100 for loss in losses)
    assert [event["images"] for event in events if event["event"] == "evaluation"] == [10]
    assert RunDirectory(tmp_path / "run").metadata().model.multiply_adds > 0
