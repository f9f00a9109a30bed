"""Every undocumented attribute of DeepSpeed that `deepspeed_internals` uses exists on a real engine."""

import ast
from pathlib import Path

import pytest

from launcher.engines import deepspeed_internals
from recipes.load import load
from recipes.schema import Recipe
from tests.launcher.conftest import SMALL
from tests.launcher.process_group import Group, train_until

OPTIMIZER = {  # attributes of DeepSpeed's optimizer by stage
    1: ["single_partition_of_fp32_groups", "bit16_groups", "bit16_groups_flat", "parallel_partitioned_bit16_groups"],
    3: [
        "fp32_partitioned_groups_flat",
        "fp16_groups",
        "grad_position",
        "get_param_id",
        "persistent_parameters",
        "_partition_all_parameters",
        "_swappable_optimizer_subgroup",
        "_optimizer_states_and_gradient_swap_in",
        "_optimizer_states_and_gradient_swap_out",
        "_release_swap_buffers",
    ],
}
OPTIMIZER[2] = OPTIMIZER[1]
EVERY_STAGE = ["override_loss_scale"]
PARAMETER = {1: ["_hp_mapping"], 2: ["_hp_mapping"], 3: ["ds_numel", "ds_tensor", "all_gather"]}
MAPPING = ["lp_fragment_address.start", "lp_fragment_address.numel", "hp_fragment_address.start"]
ENGINE = ["set_gradient_accumulation_boundary", "was_step_applied", "backward", "step", "destroy"]


def assert_internals(recipe: Recipe, run: Path) -> None:
    """Train one step; every attribute is there and lies where the state is read, and no group has torch's timeout."""
    import torch

    from launcher.engines.connection import TIMEOUT
    from launcher.training.loop import Training

    train, new_group, timeouts = Training.train, torch.distributed.new_group, []

    def recorded(*args, timeout=None, **kwargs):
        timeouts.append(timeout)
        return new_group(*args, timeout=timeout, **kwargs)

    torch.distributed.new_group = recorded

    def checked(self, step):
        engine, stage = self.engine, recipe.engine.zero
        for name in ENGINE:
            assert hasattr(engine.model, name), name
        for name in OPTIMIZER[stage] + EVERY_STAGE:
            assert hasattr(engine.model.optimizer, name), name
        for parameter in engine.names:
            for name in PARAMETER[stage]:
                assert hasattr(parameter, name), name
            if stage < 3 and parameter._hp_mapping is not None:
                for path in MAPPING:
                    address, name = path.split(".")
                    assert isinstance(getattr(getattr(parameter._hp_mapping, address), name), int), path
        held = sum(found.length for group in engine.partitions.slices for found in group)
        elements = sum(getattr(parameter, "ds_numel", parameter.numel()) for parameter in engine.names)
        assert held == elements  # one rank holds every element
        assert timeouts and set(timeouts) == {TIMEOUT}
        return train(self, step)

    Training.train = checked
    train_until(recipe, run, step=1)


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_a_real_engine_has_every_attribute(digits, tmp_path, zero):
    recipe = load("demo", [*SMALL, f"data.path={digits}", f"engine.zero={zero}", "batch.global=24", "batch.slices=3"])
    Group(1, recipe, tmp_path / "run", assert_internals).finish()


def test_no_attribute_is_used_that_this_test_does_not_name():
    named = {*EVERY_STAGE, *(name for names in OPTIMIZER.values() for name in names)}
    used = {
        node.attr
        for node in ast.walk(ast.parse(Path(deepspeed_internals.__file__).read_text()))
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) in ("optimizer", "self.optimizer")
    }
    assert used == named


def test_only_one_module_reads_them():
    """A hidden name of DeepSpeed in another module would be missed by an upgrade's test."""
    names = {name for stage in (1, 3) for name in (*OPTIMIZER[stage], *PARAMETER[stage])} - {"all_gather"}
    root = Path(deepspeed_internals.__file__).parents[1]
    for path in sorted(root.rglob("*.py")):
        if path.name != "deepspeed_internals.py":
            assert not {name for name in names if name in path.read_text()}, path
