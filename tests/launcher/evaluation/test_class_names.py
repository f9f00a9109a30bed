"""Weights and shards meet by the names of their classes: never a wrong accuracy or a wrong head without a word."""

import copy
import re

import pytest
import torch

from launcher.evaluation.class_names import ClassMatch, describe_classes, match_classes
from launcher.evaluation.evaluate import EvaluateOptions, evaluate
from launcher.evaluation.initial_weights import check_initial_weights, load_initial_weights
from models.build import build
from recipes.errors import UserError
from recipes.load import load
from tests.launcher.saved_runs import CLASSES, TINY, make_saved_run, tiny_model, write_weights

OTHERS = ("a", "b", "c", "d")


@pytest.mark.parametrize(
    "trained, wanted, match",
    [
        (CLASSES, CLASSES, ClassMatch.SAME),
        (CLASSES, ("dog", "cat", "bee", "ant"), ClassMatch.REORDERED),
        (CLASSES, OTHERS, ClassMatch.DIFFERENT),
        (CLASSES, CLASSES[:3], ClassMatch.DIFFERENT),
        (CLASSES[:3], CLASSES, ClassMatch.DIFFERENT),
        (CLASSES, ("ant", "bee", "cat", "wolf"), ClassMatch.DIFFERENT),
        (None, CLASSES, ClassMatch.UNNAMED),
        (("0", "1", "2", "3"), CLASSES, ClassMatch.UNNAMED),
        (CLASSES, ("0", "1", "2", "3"), ClassMatch.UNNAMED),
        (("0", "1", "2"), CLASSES, ClassMatch.DIFFERENT),
        (("00", "01", "02"), ("0", "1", "2"), ClassMatch.SAME),
        (("1", "2", "3"), ("a", "b", "c"), ClassMatch.DIFFERENT),
        # Folders named by numbers are sorted as text by some sources and as numbers by others.
        (tuple(map(str, range(12))), tuple(sorted(map(str, range(12)))), ClassMatch.REORDERED),
        (("a", "a", "b"), ("b", "a", "a"), ClassMatch.DIFFERENT),
        (("a", "a", "b"), ("a", "a", "b"), ClassMatch.SAME),
    ],
)
def test_names_are_compared(trained, wanted, match):
    assert match_classes(trained, wanted) == match


def test_a_long_list_is_shown_by_the_names_that_the_other_lacks():
    many = [f"class {number}" for number in range(1000)]
    assert describe_classes(many, many[:995]) == "1,000 classes (" + ", ".join(many[995:]) + ", …)"
    assert describe_classes(many, many) == "1,000 classes (" + ", ".join(many[:5]) + ", …)"
    assert describe_classes(["one\nline"], []) == "1 class (one?line)"


def top1(output: str) -> list[str]:
    return re.findall(r"top-1 ([\d.]+)%", output)


def evaluated(capsys, origin, shards, *overrides, **options) -> str:
    given = EvaluateOptions(workers=0, **options)
    results = evaluate(origin, None, [f"data.path={shards}", *overrides], given)
    return capsys.readouterr().err + "\n".join(result.line() for result in results)


def test_classes_in_another_order_are_matched_by_name(toy_shards, tmp_path, capsys):
    model, order = tiny_model(0), [2, 0, 3, 1]
    reordered = copy.deepcopy(model)
    for parameter in ("weight", "bias"):
        getattr(reordered.get_classifier(), parameter).data = getattr(model.get_classifier(), parameter).data[order]
    same = write_weights(tmp_path / "same.safetensors", model, CLASSES)
    other = write_weights(tmp_path / "other.safetensors", reordered, tuple(CLASSES[number] for number in order))
    expected = evaluated(capsys, same, toy_shards(*CLASSES))
    found = evaluated(capsys, other, toy_shards(*CLASSES))
    assert "matched by name" in found and "note" not in expected
    assert top1(found) == top1(expected) and found.split("loss ")[1] == expected.split("loss ")[1]


@pytest.mark.parametrize("wanted", [OTHERS, CLASSES[:3], (*CLASSES, "elk")])
def test_other_classes_are_refused_with_both_lists(toy_shards, tmp_path, capsys, wanted):
    file = write_weights(tmp_path / "w.safetensors", tiny_model(0), CLASSES)
    run = make_saved_run(tmp_path / "run", toy_shards(*CLASSES), {4: (0.5, None)}, overrides=("data.classes=4",))
    for origin in (file, run.path):
        with pytest.raises(UserError) as refused:
            evaluated(capsys, origin, toy_shards(*wanted))
        assert str(origin) in str(refused.value) and str(toy_shards(*wanted)) in str(refused.value)
        assert ", ".join(CLASSES) in str(refused.value) and ", ".join(wanted) in str(refused.value)
        assert "\n" not in str(refused.value)


def test_classes_without_names_are_assumed_to_be_in_order_and_that_is_said(toy_shards, tmp_path, capsys):
    model = tiny_model(0)
    named = evaluated(capsys, write_weights(tmp_path / "named.safetensors", model, CLASSES), toy_shards(*CLASSES))
    unnamed = evaluated(capsys, write_weights(tmp_path / "unnamed.safetensors", model), toy_shards(*CLASSES))
    assert top1(unnamed) == top1(named)
    assert "assumed to have the same order" in unnamed and "assumed" not in named


def initial(tmp_path, weights, classes):
    """The recipe's model as it is built, and after `model.weights` were loaded; and the notes."""
    recipe = load("demo", [*TINY, f"model.weights={weights}"])
    model = build(recipe, len(classes))
    built = copy.deepcopy(model.state_dict())
    notes = load_initial_weights(model, recipe, list(classes))
    assert check_initial_weights(recipe, list(classes)) == notes
    return built, model.state_dict(), " | ".join(notes)


def test_fine_tuning_on_the_same_classes_keeps_the_head(tmp_path):
    trained = tiny_model(0)
    _, loaded, notes = initial(tmp_path, write_weights(tmp_path / "w.safetensors", trained, CLASSES), CLASSES)
    assert all(torch.equal(loaded[name], value) for name, value in trained.state_dict().items())
    assert "head" not in notes


def test_fine_tuning_on_classes_in_another_order_puts_the_head_into_it(tmp_path):
    trained = tiny_model(0)
    file = write_weights(tmp_path / "w.safetensors", trained, CLASSES)
    _, loaded, notes = initial(tmp_path, file, CLASSES[::-1])
    assert torch.equal(loaded["head.fc.weight"], trained.state_dict()["head.fc.weight"].flip(0))
    assert torch.equal(loaded["head.fc.bias"], trained.state_dict()["head.fc.bias"].flip(0))
    assert torch.equal(loaded["stem.0.weight"], trained.state_dict()["stem.0.weight"])
    assert "order of the shards' classes" in notes


@pytest.mark.parametrize("wanted", [OTHERS, CLASSES[:3], (*CLASSES, "elk")])
def test_fine_tuning_on_other_classes_trains_a_new_head_and_says_so(tmp_path, wanted):
    """As many classes under other names are other classes, too."""
    trained = tiny_model(0)
    file = write_weights(tmp_path / "w.safetensors", trained, CLASSES)
    built, loaded, notes = initial(tmp_path, file, wanted)
    assert torch.equal(loaded["head.fc.weight"], built["head.fc.weight"])
    assert torch.equal(loaded["stem.0.weight"], trained.state_dict()["stem.0.weight"])
    assert "a new head is trained" in notes and ", ".join(CLASSES) in notes and ", ".join(wanted) in notes


def test_fine_tuning_from_unnamed_classes_goes_by_their_number(tmp_path):
    trained = tiny_model(0)
    file = write_weights(tmp_path / "w.safetensors", trained, recipe=False)
    _, loaded, notes = initial(tmp_path, file, CLASSES)
    assert torch.equal(loaded["head.fc.weight"], trained.state_dict()["head.fc.weight"])
    assert "assumed" in notes
    built, loaded, notes = initial(tmp_path, file, CLASSES[:3])
    assert torch.equal(loaded["head.fc.weight"], built["head.fc.weight"])
    assert "a new head is trained" in notes and "assumed" not in notes
