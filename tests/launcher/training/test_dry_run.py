"""`bigbatch train --dry-run` repeats what is unusual about the shards, and refuses what the start would refuse."""

import shutil
from pathlib import Path

import pytest
import torch

from data.writing.sharding import shard
from launcher.engines import disk_offload
from launcher.runs.run_directory import RunDirectory
from launcher.training.dry_run import print_dry_run
from recipes.errors import UserError
from recipes.load import load
from tests.data.pictures import encoded

OLD = Path(__file__).parents[2] / "compatibility" / "made_by_0_1_0"


def test_a_class_without_training_images_is_said_again(tmp_path, capsys):
    for split, names in (("train", "ab"), ("val", "abd")):
        for name in names:
            (tmp_path / f"tree/{split}/{name}").mkdir(parents=True)
            for i in range(8):
                (tmp_path / f"tree/{split}/{name}/{i}.jpg").write_bytes(encoded(f"{name}{i}"))
    shard(str(tmp_path / "tree"), tmp_path / "shards", progress=False)
    changes = [
        "batch.global=8",
        "batch.slices=1",
        "model.name=test_convnext",
        "data.classes=3",
        f"data.path={tmp_path / 'shards'}",
    ]
    print_dry_run(load("demo", changes), RunDirectory(tmp_path / "run"), 1, 8)
    assert "data: 1 class (d) without training images" in capsys.readouterr().out


@pytest.fixture
def dry_run(tmp_path):
    """Return a function that tries the recipe of the old artefacts with changes."""

    def run(*changes: str, run_directory: Path = tmp_path / "run") -> None:
        recipe = load(str(OLD / "small.yaml"), [f"data.path={OLD / 'blobs'}", *changes])
        print_dry_run(recipe, RunDirectory(run_directory), 1, 4)

    return run


def test_weights_that_fit_are_accepted(dry_run, capsys):
    for weights in (OLD / "weights.safetensors", OLD / "run"):
        dry_run(f"model.weights={weights}")
    assert "test_efficientnet_gn" in capsys.readouterr().out


@pytest.mark.parametrize(
    "weights, message",
    [
        ("nowhere.safetensors", "nowhere.safetensors"),
        (OLD / "small.yaml", "small.yaml"),
        ("other.pth", "other.pth"),
        ("timm", "no pretrained weights of test_efficientnet_gn"),
    ],
)
def test_weights_that_the_start_would_refuse_are_refused(dry_run, tmp_path, monkeypatch, weights, message):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": {"stem.weight": torch.zeros(3)}}, "other.pth")
    monkeypatch.setattr("timm.models.get_pretrained_cfg", lambda name, **options: None)
    with pytest.raises(UserError, match=message) as caught:
        dry_run(f"model.weights={weights}")
    assert "\n" not in str(caught.value)


def test_a_run_that_resumes_from_its_own_checkpoint_needs_no_weights(dry_run, tmp_path):
    run = Path(shutil.copytree(OLD / "run", tmp_path / "copy"))
    recipe = run / "recipe.yaml"
    recipe.write_text(recipe.read_text().replace("  weights: null", "  weights: nowhere.safetensors"))
    dry_run("model.weights=nowhere.safetensors", run_directory=run)


def test_an_offload_to_a_disk_without_libaio_is_refused(dry_run, monkeypatch):
    class Builder:
        def is_compatible(self):
            return False

    monkeypatch.setattr(disk_offload, "_file_operator_builder", Builder)
    disk_offload._compatible_builder.cache_clear()
    with pytest.raises(UserError, match="engine.offload=nvme compiles .*libaio-dev"):
        dry_run("engine.zero=3", "engine.offload=nvme", "engine.nvme_path=disk")


def test_another_run_or_a_file_in_the_way_is_refused(dry_run, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file is not a folder"):
        dry_run(run_directory=tmp_path / "file" / "run")
    with pytest.raises(UserError, match=r"another recipe .*optimizer.lr"):
        dry_run("optimizer.lr=0.5", run_directory=OLD / "run")
