"""An audit changes nothing of a run, and names the rank and the node that computes wrongly."""

import json
import os
from pathlib import Path

import pytest
import torch

from launcher.training.audit import audit_shifts
from launcher.training.audit_suspects import ComputedShare, ShareResult, disagreement, find_suspects
from launcher.world import World
from recipes.load import load
from recipes.schema import Recipe
from tests.launcher.comparison import losses
from tests.launcher.conftest import SMALL
from tests.launcher.process_group import Group, train_until

STEPS = 4
RIGHT, WRONG, OTHER = (ShareResult((1, 2), loss, 0.5, bits) for loss, bits in ((2.0, 7), (2.0, 8), (3.0, 9)))


def recipe_for(digits: Path, *changes: str) -> Recipe:
    recipe = load("demo", [*SMALL, f"data.path={digits}", "schedule.warmup_epochs=0", "batch.global=16", *changes])
    return recipe.variant(run={"save_every": STEPS})


def train_with_fault(recipe: Recipe, run: Path, fault: str, bad: int, **options) -> None:
    """Train `STEPS` steps with an audit of every second one, two ranks a node; write what it found to RUN.RANK.json.

    The faults happen on rank `bad` alone: "weight" flips the lowest bit of a weight in memory after the first update,
    and "pass" computes a slightly wrong gradient, once, in an audited step.
    """
    from launcher.engines.data_parallel import DataParallel
    from launcher.training.audit import WrongResult

    rank, per_node = int(os.environ["RANK"]), max(1, int(os.environ["WORLD_SIZE"]) // 2)
    os.environ |= {"SLURMD_NODENAME": f"node{rank // per_node}"}
    os.environ |= {"LOCAL_WORLD_SIZE": str(per_node), "LOCAL_RANK": str(rank % per_node)}
    update, backward = DataParallel.update, DataParallel.backward

    def flip_a_weight(engine, *arguments):
        update(engine, *arguments)
        if engine.updates == 1:
            with torch.no_grad():
                engine.module.get_classifier().weight.view(-1)[:1].view(torch.int32).bitwise_xor_(1)

    def scale_a_loss(engine, loss):
        backward(engine, loss * (1 + 2**-20) if engine.updates == STEPS - 1 else loss)

    if rank == bad and fault == "weight":
        DataParallel.update = flip_a_weight
    elif rank == bad:
        DataParallel.backward = scale_a_loss
    try:
        train_until(recipe, run, STEPS, audit=2, **options)
    except WrongResult as error:
        run.with_name(f"{run.name}.{rank}.json").write_text(json.dumps([error.node, error.is_here, str(error)]))


def found_by(world: int, recipe: Recipe, run: Path, fault: str, bad: int) -> list[tuple[str, bool, str]]:
    """What each rank of an audited training with a fault found."""
    Group(world, recipe, run, target=train_with_fault, fault=fault, bad=bad, micro_batch=4).finish()
    return [json.loads(run.with_name(f"{run.name}.{rank}.json").read_text()) for rank in range(world)]


def state_of(run: Path) -> dict[str, bytes]:
    """The contents of the newest checkpoint by file."""
    return {path.name: path.read_bytes() for path in max(run.glob("checkpoints/step-*")).glob("*.safetensors")}


@pytest.mark.parametrize("model", ["test_convnext", "test_efficientnet"])
def test_a_run_has_the_same_bits_with_and_without_it(digits, tmp_path, model):
    """Losses, gradient norms, weights, moments, EMA and the statistics of BatchNorm; images come from a worker."""
    recipe = recipe_for(digits, f"model.name={model}", "model.layer_scale=null")
    options = {"target": train_until, "step": STEPS, "micro_batch": 4}
    Group(2, recipe, tmp_path / "plain", **options).finish()
    Group(2, recipe, tmp_path / "audited", **options, audit=2, workers=1).finish()
    assert len(losses(tmp_path / "plain")) == STEPS and losses(tmp_path / "plain") == losses(tmp_path / "audited")
    assert state_of(tmp_path / "plain") == state_of(tmp_path / "audited")


@pytest.mark.slow
def test_a_run_under_zero_has_the_same_bits_with_and_without_it(digits, tmp_path):
    recipe, options = recipe_for(digits, "engine.zero=1"), {"target": train_until, "step": STEPS, "micro_batch": 4}
    Group(2, recipe, tmp_path / "plain", **options).finish()
    Group(2, recipe, tmp_path / "audited", **options, audit=2).finish()
    assert losses(tmp_path / "plain") == losses(tmp_path / "audited")
    assert state_of(tmp_path / "plain") == state_of(tmp_path / "audited")


def test_of_four_ranks_the_one_with_a_flipped_bit_in_a_weight_is_named(digits, tmp_path):
    found = found_by(4, recipe_for(digits), tmp_path / "run", "weight", bad=2)
    assert [(node, is_here) for node, is_here, _ in found] == [
        ("node0", False),
        ("node0", False),
        ("node1", True),
        ("node1", False),
    ]
    assert "rank 2 on node1 computed another gradient in step 2 than" in found[0][2]
    assert found[0][2].endswith("checkpoints after step 1 may hold wrong numbers")


def test_of_two_ranks_the_one_that_does_not_repeat_its_own_result_is_named(digits, tmp_path):
    found = found_by(2, recipe_for(digits), tmp_path / "run", "pass", bad=1)
    assert [is_here for _, is_here, _ in found] == [False, True]
    assert "rank 1 on node1 computed another gradient in step 4 than" in found[0][2]


def test_two_ranks_with_different_weights_are_both_named(digits, tmp_path):
    found = found_by(2, recipe_for(digits), tmp_path / "run", "weight", bad=0)
    assert [is_here for _, is_here, _ in found] == [True, True]
    assert "rank 0 on node0 and rank 1 on node1 disagree about the gradient of step 2, and no majority" in found[0][2]


@pytest.mark.parametrize(
    "shares, wrong, is_certain",
    [
        ([(0, 0, RIGHT), (0, 1, RIGHT), (1, 1, WRONG), (1, 2, RIGHT), (1, 0, RIGHT)], {1: "gradient"}, True),
        ([(0, 0, RIGHT), (0, 1, WRONG), (0, 2, RIGHT), (2, 1, OTHER), (2, 2, RIGHT), (2, 0, RIGHT)], {1: "loss"}, True),
        ([(0, 0, RIGHT), (0, 1, WRONG), (0, 0, RIGHT), (0, 1, WRONG)], {0: "gradient", 1: "gradient"}, False),
        ([(0, 0, RIGHT), (0, 1, WRONG), (0, 2, OTHER)], {0: "gradient", 1: "gradient", 2: "gradient"}, False),
    ],
)
def test_the_majority_counts(shares, wrong, is_certain):
    shares = [ComputedShare(*one) for one in shares]
    found = find_suspects(shares, rounding=0.0)
    assert disagreement(shares, rounding=0.0) and (found.wrong, found.is_certain) == (wrong, is_certain)


def test_rounding_is_no_disagreement_but_other_inputs_are():
    near = ShareResult((1, 2), 2.0 + 1e-6, 0.5 + 1e-6, 11)
    assert near.difference(RIGHT, 1e-5) is None and near.difference(RIGHT, 0.0) == "loss"
    assert ShareResult((1, 3), 2.0, 0.5, 7).difference(RIGHT, 1e-2) == "inputs"
    nan = ShareResult((1, 2), float("nan"), 0.5, 7)
    assert nan.difference(nan, 0.0) is None


@pytest.mark.parametrize(
    "world, shifts",
    [
        (World(0, 2, 0, 1), [1, 0, 1]),
        (World(0, 2, 0, 2), [1, 0, 1]),
        (World(0, 3, 0, 1), [1, 2]),
        (World(0, 4, 0, 2), [2, 3]),
        (World(0, 8, 0, 8), [1, 2]),
        (World(0, 64, 0, 8), [8, 9]),
    ],
)
def test_a_share_is_repeated_on_another_node_and_then_by_a_third_rank(world, shifts):
    assert audit_shifts(world) == shifts
