"""The catalogue holds the paper's numbers, and nothing that does not validate."""

import subprocess
import sys

import pytest
import yaml

from recipes.load import keys, load, names, validate

IN1K = {"tiny": (0.1, 32), "small": (0.4, 32), "base": (0.5, 32), "large": (0.5, 64)}
IN22K = {"tiny": 0.0, "small": 0.0, "base": 0.1, "large": 0.1, "xlarge": 0.2}


@pytest.mark.parametrize("size", IN1K)
def test_imagenet_1k_recipes_have_the_values_of_the_papers_table_5(size):
    recipe = load(f"convnext_{size}_in1k")
    _assert_common(recipe, f"convnext_{size}")
    assert (recipe.model.drop_path, recipe.batch.slices) == IN1K[size]
    assert (recipe.schedule.epochs, recipe.schedule.warmup_epochs) == (300, 20)
    assert recipe.ema.decay == 0.9999
    assert recipe.data.classes == 1000


@pytest.mark.parametrize("size", IN22K)
def test_imagenet_22k_recipes_have_the_values_of_the_papers_table_5(size):
    recipe = load(f"convnext_{size}_in22k")
    _assert_common(recipe, f"convnext_{size}")
    assert recipe.model.drop_path == IN22K[size]
    assert recipe.batch.slices == 128
    assert (recipe.schedule.epochs, recipe.schedule.warmup_epochs) == (90, 5)
    assert recipe.ema.decay is None
    assert recipe.data.classes == 21841


def _assert_common(recipe, model):
    assert (recipe.model.name, recipe.model.init_std, recipe.model.layer_scale) == (model, 0.02, 1e-6)
    assert (recipe.model.head_init_scale, recipe.model.weights) == (None, None)
    assert recipe.batch.global_ == 4096
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.betas, optimizer.eps) == ("adamw", 4e-3, (0.9, 0.999), 1e-8)
    assert (optimizer.weight_decay, optimizer.layer_decay, optimizer.clip_grad) == (0.05, None, None)
    assert (recipe.schedule.shape, recipe.schedule.min_lr) == ("cosine", 1e-6)
    assert (recipe.input.size, recipe.input.interpolation, recipe.input.eval_crop) == (224, "bicubic", 224 / 256)
    augment = recipe.augment
    assert (augment.randaugment, augment.color_jitter, augment.erasing) == ("rand-m9-mstd0.5-inc1", 0.4, 0.25)
    assert (augment.crop_scale, augment.crop_ratio, augment.flip) == ((0.08, 1.0), (3 / 4, 4 / 3), 0.5)
    mix = recipe.mix
    assert (mix.mixup, mix.cutmix, mix.switch, mix.probability, mix.mode) == (0.8, 1.0, 0.5, 1.0, "batch")
    assert recipe.loss.smoothing == 0.1


def test_the_cats_and_dogs_recipe_fine_tunes_as_the_code_does():
    recipe = load("convnext_tiny_cats_dogs")
    assert (recipe.batch.global_, recipe.optimizer.lr, recipe.optimizer.weight_decay) == (512, 5e-5, 1e-8)
    assert (recipe.model.head_init_scale, recipe.model.weights) == (0.001, "timm")
    assert (recipe.mix.mixup, recipe.mix.cutmix) == (0, 0)
    assert recipe.optimizer.layer_decay is not None
    assert (recipe.schedule.epochs, recipe.schedule.warmup_epochs) == (30, 0)


@pytest.mark.parametrize("name", names())
def test_a_printed_recipe_is_complete_and_reads_back_as_itself(name):
    recipe = load(name)
    printed = yaml.safe_dump(recipe.to_dict())
    assert validate(yaml.safe_load(printed)) == recipe
    written = yaml.safe_load(printed)
    for key in keys():
        value = written
        for part in key.split("."):
            assert part in value, f"{key} is not spelled out"
            value = value[part]


def test_every_recipe_says_what_it_is_and_where_it_comes_from():
    for name in names():
        recipe = load(name)
        assert recipe.name == name and recipe.summary and recipe.source


def test_recipes_load_without_torch():
    code = "import sys, recipes.load as r; [r.load(n) for n in r.names()]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_identity_is_the_trajectory_and_nothing_else():
    recipe = load("demo")
    same = ["engine.precision=bf16", "run.keep=9", "data.path=/elsewhere", "run.save_every=7"]
    assert load("demo", same).identity() == recipe.identity()
    for change in ("seed=1", "batch.slices=2", "optimizer.lr=1e-3", "model.drop_path=0.2", "augment.flip=0.4", "ema.decay=null"):
        assert load("demo", [change]).identity() != recipe.identity(), change
