"""A batch size of one's own keeps the learning rate and says so, or scales it where the recipe asks for it."""

import pytest

from recipes.load import load, override, with_modules
from recipes.lr_scaling import batch_overrides, lr_note, peak_lr, scaled_lr, smaller_batch
from recipes.schedule import StepSchedule

CONVNEXT = "convnext_tiny_in1k"
CHANGED = "batch.global=1024"


@pytest.mark.parametrize(
    ("optimizer", "expected"), [("adamw", 2e-3), ("lamb", 2e-3), ("lion", 2e-3), ("sgd", 1e-3), ("lars", 1e-3)]
)
def test_lr_at_batch_scales_by_the_rule_of_the_optimizer(optimizer, expected):
    recipe = load(CONVNEXT, [CHANGED, f"optimizer.name={optimizer}", "optimizer.lr_at_batch=4096"])
    assert peak_lr(recipe) == pytest.approx(expected)
    schedule = StepSchedule(recipe, 1_281_167)
    assert schedule.lr(schedule.warmup_steps) == pytest.approx(expected)
    assert optimizer in lr_note(recipe)


def test_timms_own_optimizers_have_a_rule_too():
    assert scaled_lr(load(CONVNEXT, ["optimizer.name=timm:sgdw"]), 0.1, 256, 512) == pytest.approx(0.2)
    assert scaled_lr(load(CONVNEXT, ["optimizer.name=timm:adopt"]), 0.1, 256, 1024) == pytest.approx(0.2)


def test_lr_at_batch_is_part_of_the_identity_and_without_it_nothing_changes():
    old = load(CONVNEXT, [CHANGED])
    assert old.identity() != load(CONVNEXT, [CHANGED, "optimizer.lr_at_batch=4096"]).identity()
    assert "lr_at_batch" not in old.trajectory()["optimizer"]
    assert peak_lr(old) == 4e-3


def note(name, *overrides) -> str | None:
    return lr_note(load(str(name), overrides))


def test_a_changed_batch_is_said_with_the_numbers_of_both_rules():
    assert note(CONVNEXT, CHANGED) == (
        "batch 4096 → 1024: the learning rate stays 4e-3; square-root rule 2e-3, linear 1e-3 "
        "(optimizer.lr_at_batch=4096 scales it by the square-root rule of adamw)"
    )
    assert note(CONVNEXT, CHANGED, "optimizer.lr_at_batch=4096") == (
        "batch 4096 → 1024: learning rate 4e-3 → 2e-3 by the square-root rule of adamw"
    )


def test_nothing_is_said_where_batch_and_learning_rate_belong_together(tmp_path):
    assert note(CONVNEXT) is note(CONVNEXT, CHANGED, "optimizer.lr=1e-3") is None
    assert note(CONVNEXT, "schedule.epochs=100") is note("demo") is None
    run = tmp_path / "recipe.yaml"  # as a run keeps it, with every key spelled out
    run.write_text(f"base: {CONVNEXT}\nbatch: {{global: 1024}}\noptimizer: {{lr: 2.0e-3}}\n")
    assert note(run) is None
    own = tmp_path / "own.yaml"
    own.write_text(f"base: {CONVNEXT}\nbatch: {{global: 1024}}\n")
    assert note(own).startswith("batch 4096 → 1024")


def test_the_note_outlives_whatever_else_is_done_to_a_recipe():
    recipe = load(CONVNEXT, [CHANGED])
    changed = override(with_modules(recipe, ["json"]).variant(engine={"zero": 1}), ["schedule.epochs=100"])
    assert lr_note(changed) == lr_note(recipe) != lr_note(load(CONVNEXT)) is None
    assert lr_note(override(recipe, ["batch.global=512"])).startswith("batch 4096 → 512")
    assert lr_note(override(recipe, ["optimizer.lr=2e-3"])) is None


def test_the_learning_rate_advised_for_little_data_follows_from_the_batch_that_it_was_written_for():
    """Not from a batch that was changed without it, in whatever way."""
    short = load(CONVNEXT, ["schedule.epochs=30"])
    for recipe in (short, load(CONVNEXT, ["schedule.epochs=30", CHANGED]), override(short, [CHANGED])):
        _, overrides = smaller_batch(recipe, 359)
        assert "batch.global=16" in overrides and "optimizer.lr=2.5e-4" in overrides


def test_the_batch_advised_for_little_data_gives_hundreds_of_steps_where_it_can():
    assert smaller_batch(load(CONVNEXT), 50_000) == (2048, "batch.global=2048 batch.slices=16 optimizer.lr=2.83e-3")
    batch, overrides = smaller_batch(load(CONVNEXT, ["schedule.epochs=30"]), 359)
    assert batch == 16 and "optimizer.lr=2.5e-4" in overrides
    assert smaller_batch(load(CONVNEXT, ["batch.global=16", "batch.slices=1"]), 359) is None
    assert "batch.statistics=512" in smaller_batch(load(CONVNEXT, ["batch.statistics=1024"]), 1438)[1]
    assert "lr=" not in smaller_batch(load(CONVNEXT, ["optimizer.lr_at_batch=4096"]), 1438)[1]


@pytest.mark.parametrize(
    "changes",
    [["batch.statistics=1024"], ["optimizer.lr_at_batch=4096"], ["batch.slices=3", "batch.global=96"]],
    ids=str,
)
@pytest.mark.parametrize("batch", [16, 256, 100_000])
def test_the_overrides_of_another_batch_make_a_valid_recipe_with_the_learning_rate_of_the_rule(changes, batch):
    recipe = load(CONVNEXT, changes)
    changed = override(recipe, batch_overrides(recipe, batch))
    expected = scaled_lr(recipe, 4e-3, 4096, batch)  # what the recipe was written for
    assert changed.batch.global_ == batch and peak_lr(changed) == pytest.approx(expected, rel=0.005)
