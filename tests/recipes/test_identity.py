"""A recipe's identity is that of its trajectory: new keys and moved files leave it as it is, all else changes it."""

from typing import Any

import pytest
from pydantic import ValidationError

from recipes.load import load
from recipes.schema import Recipe
from recipes.sections import ModelSettings, Section, added_in

# Computed by the code of version 0.1.0.
OF_0_1_0 = {
    "demo": "76ffae0dc5f51d442f73663a67d30632d72ad5d6f9867c1347c0f7feffb6556c",
    "convnext_tiny_in1k": "925077860efd1a57f8fa03243657de4ab75469524664bc228e1c7e0eda3f2152",
    "convnext_xlarge_in22k_in1k_384": "4b9a0262e9b3219dd9b3493cd4bf59be737c4758edc089c336c18e78a40a043c",
    "resnet50_in1k_classic": "cf01eb022ba87a27c566a7b66db915295ea303a32ed17bb279b879a828c87dac",
    "swin_tiny_in1k": "158b1f388a9dd694ec3b68f2caca127bb750a43fe5cf33a514f73393b5147254",
    "roadmap_15_convnext_tiny": "4ba4b42b2b4520d05868662fa8fdc3b78d5c17640b75618e3476e2df0da6e1a2",
    "convnext_tiny_cats_dogs": "79f678ab270d9406a50b02d6d31a857f617c7489586c3d4f012e26f5abc56737",
    "convnext_atto_cifar10": "89712ad5c33e89c3af45a177205dbbf29f3e5ea0570f2581cb68a6a047cad4a6",
}
WITH_WEIGHTS_FILE_IN_0_1_0 = (
    "b3ed7c18bed941eee0db6b48594791c0aa6b4afb9e20b38b6c56f509a1f1fada"  # demo with model.weights=old.pth
)


@pytest.mark.parametrize("name", OF_0_1_0)
def test_recipes_keep_the_identity_that_the_first_version_gave_them(name):
    assert load(name).identity() == OF_0_1_0[name]


def test_identity_is_the_trajectory_and_nothing_else():
    recipe = load("demo")
    same = ["engine.precision=bf16", "run.keep=9", "data.path=/elsewhere", "run.save_every=7"]
    assert load("demo", same).identity() == recipe.identity()
    for change in (
        "seed=1",
        "batch.slices=2",
        "optimizer.lr=1e-3",
        "model.drop_path=0.2",
        "model.weights=timm",
        "model.weights_key=state_dict",
        "augment.flip=0.4",
        "ema.decay=null",
    ):
        assert load("demo", [change]).identity() != recipe.identity(), change


class FreezeSettings(Section):
    layers: int = 0


class NewerModelSettings(ModelSettings):
    attention: str | None = added_in("9.9", None, "a key that a later version adds")


class NewerRecipe(Recipe):
    model: NewerModelSettings = NewerModelSettings()
    freeze: FreezeSettings = added_in("9.9", FreezeSettings(), "a section that a later version adds")


def newer(**changes: Any) -> NewerRecipe:
    values = load("demo").to_dict()
    for section, keys in changes.items():
        values[section] = {**values.get(section, {}), **keys}
    return NewerRecipe.model_validate(values)


def test_a_new_key_changes_the_identity_only_of_recipes_that_use_it():
    assert newer().identity() == load("demo").identity()
    assert newer(model={"attention": None}, freeze={"layers": 0}).identity() == load("demo").identity()
    used = [newer(model={"attention": "linear"}), newer(freeze={"layers": 2}), newer(freeze={"layers": 3}), newer()]
    assert len({recipe.identity() for recipe in used}) == len(used)
    assert newer(freeze={"layers": 2}).trajectory()["freeze"] == {"layers": 2}
    assert newer().to_dict()["model"]["attention"] is None  # printed recipes still spell it out


def test_a_moved_weights_file_is_the_same_run():
    """No path enters the identity; whether the contents are the same is checked by the run directory."""
    here, there = load("demo", ["model.weights=a.pth"]), load("demo", ["model.weights=/elsewhere/b.pth"])
    assert here.trajectory() == there.trajectory() and here.identity() == there.identity()
    assert len({here.identity(), load("demo").identity(), load("demo", ["model.weights=timm"]).identity()}) == 3


def test_a_checkpoint_of_the_first_version_is_recognised_by_a_recipe_with_a_weights_file():
    recipe = load("demo", ["model.weights=old.pth"])
    assert recipe.has_identity(recipe.identity()) and recipe.has_identity(WITH_WEIGHTS_FILE_IN_0_1_0)
    assert not load("demo").has_identity(WITH_WEIGHTS_FILE_IN_0_1_0)
    assert not recipe.has_identity(load("demo").identity())


def test_a_variant_changes_what_it_names_and_nothing_else():
    recipe = load("demo")
    changed = recipe.variant(engine={"zero": 1}, batch={"global_": 64, "slices": 2})
    assert (changed.engine.zero, changed.batch.global_, changed.batch.slices) == (1, 64, 2)
    assert changed.variant(engine=recipe.engine.model_dump(), batch=recipe.batch.model_dump()) == recipe


@pytest.mark.parametrize(
    "sections, error",
    [
        ({"engin": {"zero": 1}}, AttributeError),
        ({"engine": {"zeroo": 1}}, ValidationError),
        ({"engine": {"zero": 7}}, ValidationError),
    ],
)
def test_a_misspelt_variant_is_an_error(sections, error):
    with pytest.raises(error, match="zero|engin"):
        load("demo").variant(**sections)
