"""The inputs of every step are the same bits at any cut: the promise of the whole project."""

import pytest

import data.batches
import data.images.augment
import data.mixing
import data.order
import models.stochastic_depth
from launcher.training.fingerprint import fingerprints
from recipes.randomness import random_key

STEPS = range(2, 5)  # 22 steps of 64 are an epoch of 1,438 digits
EPOCH_BOUNDARY = range(21, 23)


@pytest.fixture
def digest(small_recipe):
    def of(*changes, steps=STEPS, world_size=1, micro_batch=16, workers=0):
        return list(fingerprints(small_recipe(*changes), steps, world_size, micro_batch, workers))

    return of


@pytest.fixture
def reference(digest):
    return digest()


@pytest.mark.parametrize("workers", [0, 1, 3])
@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("micro_batch", [4, 16, 64, 7, 11])  # slices are 16 images: 7 and 11 cross them
def test_inputs_are_bit_identical_at_every_cut(digest, reference, world_size, micro_batch, workers):
    share = -(-64 // world_size)
    assert digest(world_size=world_size, micro_batch=min(micro_batch, share), workers=workers) == reference


@pytest.mark.parametrize(
    "changes",
    [
        ["augment.crop=pad"],
        ["mix.mode=pair"],
        ["mix.mode=elem"],
        ["augment.repeats=3"],
        ["augment.randaugment=null", "augment.policy=trivial"],
        ["augment.randaugment=null", "augment.policy=three"],
    ],
    ids=" ".join,
)
def test_inputs_of_optional_ingredients_are_bit_identical_at_another_cut(digest, reference, changes):
    one = digest(*changes)
    assert one != reference
    assert digest(*changes, world_size=3, micro_batch=7) == one
    assert digest(*changes, steps=range(4, 5)) == one[2:]


def test_inputs_are_bit_identical_across_the_boundary_of_an_epoch(digest):
    assert digest(steps=EPOCH_BOUNDARY, world_size=3, micro_batch=5) == digest(steps=EPOCH_BOUNDARY)


def test_a_step_does_not_depend_on_the_steps_before_it(digest, reference):
    assert digest(steps=range(4, 5)) == reference[2:]


@pytest.mark.parametrize(
    "module, purpose",
    [
        (data.order, "order"),
        (data.images.augment, "augment"),
        (data.mixing, "mix"),
        (data.batches, "noise"),
        (models.stochastic_depth, "drop path"),
    ],
)
def test_the_digest_notices_when_any_one_key_is_off(digest, reference, monkeypatch, module, purpose):
    """Each ingredient enters the digest: with one bit of one kind of key turned over, every step differs."""
    monkeypatch.setattr(
        module, "random_key", lambda seed, what, *numbers: random_key(seed, what, *numbers) ^ (what == purpose)
    )
    perturbed = digest()
    assert all(ours != expected for (_, ours), (_, expected) in zip(perturbed, reference))


@pytest.mark.parametrize(
    "change",
    [
        "augment.randaugment=null",
        "augment.erasing=0",
        "mix.mixup=0",
        "mix.cutmix=0",
        "model.drop_path=0",
        "batch.slices=8",
        "seed=1",
    ],
)
def test_every_ingredient_is_on_in_what_is_compared(digest, reference, change):
    assert digest(change) != reference


def test_batch_norm_models_are_fed_the_same_too(small_recipe):
    recipe = small_recipe("model.name=test_resnet", "model.layer_scale=null")
    one = list(fingerprints(recipe, STEPS, 1, 64, 0))
    assert list(fingerprints(recipe, STEPS, 3, 16, 1)) == one


def test_models_with_dropout_are_given_the_same_keys_at_any_cut(small_recipe, monkeypatch):
    recipe = small_recipe("model.name=legacy_seresnet18", "model.layer_scale=null", "model.drop_path=0")
    one = list(fingerprints(recipe, STEPS, 1, 64, 0))
    assert list(fingerprints(recipe, STEPS, 3, 16, 0)) == one
    monkeypatch.setattr(
        models.stochastic_depth, "random_key", lambda seed, what, *numbers: random_key(seed, what, *numbers) ^ 1
    )
    assert all(ours != expected for (_, ours), (_, expected) in zip(fingerprints(recipe, STEPS, 1, 64, 0), one))
