"""During accumulation and the update no rank asks its device for a value: each question makes the host wait."""

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from recipes.load import load
from recipes.schema import Recipe
from tests.launcher.conftest import SMALL
from tests.launcher.process_group import Group, train_until

# What makes the host wait for a GPU: reading a number, or a shape that depends on values.
QUESTIONS = {
    "aten::_local_scalar_dense",
    "aten::nonzero",
    "aten::is_nonzero",
    "aten::equal",
    "aten::masked_select",
    "aten::_unique2",
}


class Questions(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        assert function.name().split(".")[0] not in QUESTIONS, f"{function.name()} waits for the device"
        return function(*args, **(kwargs or {}))


def train_without_questions(recipe: Recipe, run, **options) -> None:
    from launcher.engines.data_parallel import DataParallel
    from launcher.training.loop import Training

    micro_batch, update = Training._micro_batch, DataParallel.update

    def watched(*arguments, **more):
        with Questions():
            return micro_batch(*arguments, **more)

    def watched_update(*arguments):
        with Questions():
            return update(*arguments)

    Training._micro_batch, DataParallel.update = watched, watched_update
    train_until(recipe, run, **options)


CHANGES = {
    "convnext": [],
    "batch norm": ["model.name=test_resnet", "model.layer_scale=null", "model.drop_path=0"],
}


@pytest.mark.parametrize("changes", CHANGES.values(), ids=CHANGES.keys())
def test_a_micro_batch_asks_the_device_nothing(digits, tmp_path, changes):
    """Mixing, erasing, stochastic depth, BatchNorm's statistics, a padded last micro-batch, clipping, the norm."""
    recipe = load("demo", [*SMALL, f"data.path={digits}", "optimizer.clip_grad=1", *changes])
    Group(1, recipe, tmp_path / "run", train_without_questions, step=2, micro_batch=24 if not changes else 16).finish()


def test_a_question_would_be_noticed():
    with Questions(), pytest.raises(AssertionError, match="waits for the device"):
        torch.ones(()).item()
