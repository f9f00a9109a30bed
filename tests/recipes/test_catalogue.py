"""The catalogue holds the paper's numbers, and nothing that does not validate."""

import subprocess
import sys

import pytest
import yaml

from recipes.load import config_keys, load, recipe_names, validate

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


# Table 6 and the released commands: drop path, slices at 224 and at 384 (nodes x GPUs); no code for T and S.
IN22K_IN1K = {
    "tiny": (0.0, 16, 32),
    "small": (0.1, 16, 32),
    "base": (0.2, 16, 32),
    "large": (0.3, 16, 32),
    "xlarge": (0.4, 32, 64),
}
IN1K_384 = {"base": 0.8, "large": 0.95}


@pytest.mark.parametrize("size", IN22K_IN1K)
@pytest.mark.parametrize("pixels", [224, 384])
def test_fine_tuning_from_22k_has_the_values_of_the_papers_table_6(size, pixels):
    recipe = load(f"convnext_{size}_in22k_in1k" + ("_384" if pixels == 384 else ""))
    _assert_fine_tuning(recipe, f"convnext_{size}.fb_in22k", pixels, layer_decay=0.8, head=0.001)
    drop_path, *slices = IN22K_IN1K[size]
    assert (recipe.model.drop_path, recipe.batch.slices) == (drop_path, slices[pixels == 384])
    assert recipe.ema.decay == (0.9999 if size == "xlarge" else None)


@pytest.mark.parametrize("size", IN1K_384)
def test_fine_tuning_from_1k_has_the_values_of_the_papers_table_6(size):
    """The pretrained head is kept: the released code scales it before it loads weights, which has no effect."""
    recipe = load(f"convnext_{size}_in1k_384")
    _assert_fine_tuning(recipe, f"convnext_{size}.fb_in1k", 384, layer_decay=0.7, head=None)
    assert (recipe.model.drop_path, recipe.batch.slices, recipe.ema.decay) == (IN1K_384[size], 16, None)


def _assert_fine_tuning(recipe, model, pixels, layer_decay, head):
    assert (recipe.model.name, recipe.model.weights, recipe.model.head_init_scale) == (model, "timm", head)
    assert (recipe.data.name, recipe.data.classes, recipe.input.size) == ("imagenet-1k", 1000, pixels)
    assert (recipe.batch.global_, recipe.schedule.epochs, recipe.schedule.warmup_epochs, recipe.schedule.shape) == (
        512,
        30,
        0,
        "cosine",
    )
    optimizer = recipe.optimizer
    assert (optimizer.name, optimizer.lr, optimizer.weight_decay, optimizer.layer_decay) == (
        "adamw",
        5e-5,
        1e-8,
        layer_decay,
    )
    assert (recipe.mix.mixup, recipe.mix.cutmix, recipe.loss.smoothing) == (0, 0, 0.1)
    assert (recipe.augment.randaugment, recipe.augment.erasing) == ("rand-m9-mstd0.5-inc1", 0.25)


@pytest.mark.parametrize("model", ["resnet50", "resnext50_32x4d"])
def test_classic_recipes_are_torchvisions(model):
    recipe = load(f"{model}_in1k_classic")
    assert (recipe.model.name, recipe.model.init_std, recipe.model.drop_path, recipe.model.weights) == (
        model,
        None,
        0,
        None,
    )
    assert (recipe.batch.global_, recipe.batch.statistics_size) == (256, 32)
    assert (recipe.optimizer.name, recipe.optimizer.lr, recipe.optimizer.momentum, recipe.optimizer.weight_decay) == (
        "sgd",
        0.1,
        0.9,
        1e-4,
    )
    schedule = recipe.schedule
    assert (schedule.epochs, schedule.warmup_epochs, schedule.shape, schedule.step_epochs) == (90, 0, "step", 30)
    assert (recipe.augment.randaugment, recipe.augment.color_jitter, recipe.augment.erasing) == (None, None, 0)
    assert (recipe.mix.mixup, recipe.mix.cutmix, recipe.loss.smoothing, recipe.ema.decay) == (0, 0, 0, None)
    assert recipe.input.interpolation == "bilinear"


def test_swin_has_its_own_papers_values():
    recipe = load("swin_tiny_in1k")
    assert (recipe.batch.global_, recipe.optimizer.lr, recipe.schedule.min_lr, recipe.optimizer.clip_grad) == (
        1024,
        1e-3,
        1e-5,
        5.0,
    )
    assert (recipe.model.drop_path, recipe.schedule.epochs, recipe.schedule.warmup_epochs, recipe.ema.decay) == (
        0.2,
        300,
        20,
        None,
    )


# What docs/recipes.md compares with the originals: one recipe a line, with a value for each key; - is null.
REFERENCE_KEYS = """
optimizer.name optimizer.lr batch.global_ optimizer.weight_decay schedule.epochs schedule.warmup_epochs schedule.shape
loss.kind loss.smoothing loss.target_threshold mix.mixup mix.cutmix augment.repeats model.drop_path
augment.randaugment augment.policy input.size input.evaluated_size input.eval_crop
"""
REFERENCES = """
resnet50_in1k_a1 lamb 5e-3 2048 .01 600 5 cosine bce .1 - .2 1 3 .05 rand-m7-mstd0.5-inc1 - 224 224 .95
resnet50_in1k_a2 lamb 5e-3 2048 .02 300 5 cosine bce 0 .2 .1 1 3 .05 rand-m7-mstd0.5-inc1 - 224 224 .95
resnet50_in1k_a3 lamb 8e-3 2048 .02 100 5 cosine bce 0 .2 .1 1 1 0 rand-m6-mstd0.5-inc1 - 160 224 .95
resnet50_in1k_torchvision sgd .5 1024 2e-5 600 5 cosine cross_entropy .1 - .2 1 4 0 - trivial 176 224 .9655
convnext_tiny_in1k_torchvision adamw 1e-3 1024 .05 600 5 cosine cross_entropy .1 - .2 1 4 .1 - trivial 176 224 .949
resnet50_in1k_lars_4096 lars 10 4096 2e-4 47 5 polynomial cross_entropy .1 - 0 0 1 0 - - 224 224 .875
resnet50_in1k_lars_8192 lars 17 8192 2e-4 44 5 polynomial cross_entropy .1 - 0 0 1 0 - - 224 224 .875
resnet50_in1k_lars_32768 lars 21.2 32768 2.5e-5 74 16 polynomial cross_entropy .1 - 0 0 1 0 - - 224 224 .875
resnet50_in1k_linear_8192 sgd 3.2 8192 1e-4 90 5 step cross_entropy 0 - 0 0 1 0 - - 224 224 .875
deit3_small_in1k lamb 4e-3 2048 .05 800 5 cosine bce 0 0 .8 1 3 .05 - three 224 224 1
deit3_base_in1k lamb 3e-3 2048 .05 800 5 cosine bce 0 0 .8 1 3 .2 - three 192 192 1
deit3_base_in1k_224 adamw 1e-5 512 .1 20 5 constant cross_entropy .1 - .8 1 1 .2 {m9} - 224 224 1
convnext_isotropic_small_in1k adamw 4e-3 4096 .05 300 50 cosine cross_entropy .1 - .8 1 1 .1 {m9} - 224 224 .875
convnext_isotropic_base_in1k adamw 4e-3 4096 .05 300 50 cosine cross_entropy .1 - .8 1 1 .2 {m9} - 224 224 .875
convnext_isotropic_large_in1k adamw 4e-3 4096 .05 300 50 cosine cross_entropy .1 - .8 1 1 .5 {m9} - 224 224 .875
""".format(m9="rand-m9-mstd0.5-inc1")
REFERENCE_ROWS = [line.split() for line in REFERENCES.strip().splitlines()]


@pytest.mark.parametrize("name, expected", [(row[0], row[1:]) for row in REFERENCE_ROWS])
def test_large_batch_recipes_have_the_values_of_their_originals(name, expected):
    recipe = load(name)
    for key, text in zip(REFERENCE_KEYS.split(), expected, strict=True):
        section, _, field = key.partition(".")
        value = getattr(getattr(recipe, section), field)
        assert value == (None if text == "-" else type(value)(text)), key


def test_slices_clipping_and_ema_of_large_batch_recipes():
    found = {row[0]: load(row[0]) for row in REFERENCE_ROWS}
    slices = {name: recipe.batch.slice_size for name, recipe in found.items()}
    assert {slices[name] for name in slices if "lars" in name} == {64, 128}  # the span of BatchNorm in MLPerf
    assert slices["resnet50_in1k_linear_8192"] == 32 and slices["resnet50_in1k_torchvision"] == 128
    assert {recipe.optimizer.clip_grad for recipe in found.values() if recipe.optimizer.name == "lamb"} == {1.0}
    # torchvision: decay 0.99998, scaled by 8 GPUs x 128 x 32 steps / 600 epochs, every 32 steps
    per_step = 1 - (1 - 0.99998) * 8 * 128 * 32 / 600 / 32
    assert found["resnet50_in1k_torchvision"].ema.decay == pytest.approx(per_step, abs=1e-6)
    assert [found[f"convnext_isotropic_{size}_in1k"].model.layer_scale for size in ("small", "base", "large")] == [
        None,
        None,
        1e-6,
    ]


def test_all_steps_of_the_road_and_modern_resnets_have_one_recipe():
    """The paper's: that of ConvNeXt-T, without EMA. Only the network differs."""
    steps = [load(name) for name in recipe_names() if name.startswith("roadmap_")]
    assert [recipe.model.name for recipe in steps] == [recipe.name for recipe in steps] and len(steps) == 16
    tiny = load("convnext_tiny_in1k", ["ema.decay=null"])
    for recipe in steps:
        assert recipe.model_copy(update={"model": tiny.model}).trajectory() == tiny.trajectory()
        assert recipe.model == tiny.model.model_copy(update={"name": recipe.name})
    for name in ("resnet50_in1k_modern", "resnext50_32x4d_in1k_modern"):
        modern = load(name)
        assert modern.model_copy(update={"model": tiny.model}).trajectory() == tiny.trajectory()


def test_every_family_is_fine_tuned_on_cats_and_dogs_and_on_cifar_10():
    for family in ("convnext_tiny", "resnet50", "resnext50_32x4d"):
        for data, classes in (("cats_dogs", 2), ("cifar10", 10)):
            recipe = load(f"{family}_{data}")
            assert recipe.model.name.partition(".")[0] == family and recipe.model.weights == "timm"
            assert (recipe.data.classes, recipe.mix.mixup, recipe.mix.cutmix) == (classes, 0, 0)


def test_the_cats_and_dogs_recipe_fine_tunes_as_the_code_does():
    recipe = load("convnext_tiny_cats_dogs")
    assert (recipe.batch.global_, recipe.optimizer.lr, recipe.optimizer.weight_decay) == (512, 5e-5, 1e-8)
    assert (recipe.model.head_init_scale, recipe.model.weights) == (0.001, "timm")
    assert (recipe.mix.mixup, recipe.mix.cutmix) == (0, 0)
    assert recipe.optimizer.layer_decay is not None
    assert (recipe.schedule.epochs, recipe.schedule.warmup_epochs) == (30, 0)


@pytest.mark.parametrize("name", recipe_names())
def test_a_printed_recipe_is_complete_and_reads_back_as_itself(name):
    recipe = load(name)
    printed = yaml.safe_dump(recipe.to_dict())
    assert validate(yaml.safe_load(printed)) == recipe
    written = yaml.safe_load(printed)
    for key in config_keys():
        value = written
        for part in key.split("."):
            assert part in value, f"{key} is not spelled out"
            value = value[part]


def test_every_recipe_says_what_it_is_and_where_it_comes_from():
    for name in recipe_names():
        recipe = load(name)
        assert recipe.name == name and recipe.summary and recipe.source


def test_recipes_load_without_torch():
    code = "import sys, recipes.load as r; [r.load(n) for n in r.recipe_names()]; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
