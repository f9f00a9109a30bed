"""The predicted states and gathered parameters are what 2 processes hold of ConvNeXt-atto with an EMA.

`pytest -s` prints the table of docs/measurements/plan-accuracy.md.
"""

import gc
import json
import warnings
from pathlib import Path

import pytest
import torch

from launcher.cut import cut_batch
from launcher.engines.deepspeed_config import KEPT_WHOLE
from launcher.planning.engine_rules import with_default_engine
from launcher.planning.memory_model import predict_states
from launcher.planning.model_profile import ParameterSizes
from recipes.load import load
from recipes.schema import Recipe
from tests.launcher.process_group import Group, train_until

pytestmark = pytest.mark.slow


def alive() -> int:
    """Return the bytes of the storages of all tensors of this process."""
    warnings.simplefilter("ignore")
    storages = {}
    for thing in gc.get_objects():
        if isinstance(thing, torch.Tensor) and thing.device.type == "cpu":
            for tensor in (thing, thing.grad) if thing.is_leaf else (thing,):
                if tensor is not None:
                    storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
    return sum(storages.values())


def measured(recipe: Recipe, run: Path, step: int, micro_batch: int) -> None:
    """Train in each process and write the bytes held before the last update, without those that no engine holds."""
    from deepspeed.runtime.zero.partition_parameters import ZeroParamStatus
    from deepspeed.runtime.zero.partitioned_param_coordinator import PartitionedParameterCoordinator

    from launcher.engines.base import Engine
    from launcher.training.loop import Training

    update, train, fetch = Engine.update, Training.train, PartitionedParameterCoordinator.fetch_sub_module
    before, gathered, found = 0, 0, {}
    engine = None

    def train_counted(self, start):
        nonlocal before, engine
        engine = self.engine
        before = sum(
            tensor.untyped_storage().nbytes()
            for tensor in (self.preprocessor.noise, self.preprocessor.scale, self.preprocessor.shift)
        )
        return train(self, start)

    def fetch_counted(self, *arguments, **options):
        nonlocal gathered
        fetch(self, *arguments, **options)
        if engine:
            there = [
                parameter.ds_numel for parameter in engine.names if parameter.ds_status != ZeroParamStatus.NOT_AVAILABLE
            ]
            gathered = max(gathered, sum(there))

    def update_counted(self, *arguments):
        sizes = [getattr(parameter, "ds_numel", parameter.numel()) for parameter in self.names]
        found.update(held=alive() - before, sizes=sizes, gathered=gathered)
        update(self, *arguments)

    Training.train, Engine.update, PartitionedParameterCoordinator.fetch_sub_module = (
        train_counted,
        update_counted,
        fetch_counted,
    )
    train_until(recipe, run, step=step, micro_batch=micro_batch)
    if engine.is_main:
        run.with_suffix(".json").write_text(json.dumps(found))


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_states_are_held_as_predicted_within_5_percent(digits, tmp_path, zero):
    changes = [
        f"data.path={digits}",
        "model.name=convnext_atto",
        "batch.global=8",
        "batch.slices=2",
        "input.size=32",
        "ema.decay=0.99",
    ]
    recipe = with_default_engine(load("demo", [*changes, "engine.precision=float32", f"engine.zero={zero}"]))
    Group(2, recipe, tmp_path / "run", measured, step=2, micro_batch=2).finish()
    found = json.loads((tmp_path / "run.json").read_text())
    held, gathered, sizes = found["held"], 4 * found["gathered"], found["sizes"]
    small = sum(size for size in sizes if size < KEPT_WHOLE)
    sizes = ParameterSizes(sum(sizes), max(sizes), small, trained=sum(sizes))
    memory = predict_states(recipe, sizes, buffers=0, cut=cut_batch(recipe, 2, 2, largest=2))
    predicted = memory.parameters + memory.gradients + memory.optimizer + memory.ema
    if zero in (1, 2):
        predicted -= memory.gradients // 2  # at the end of a step only the own shard of the gradients is left
    if zero == 3:
        bucket = 4 * sizes.total
        assert memory.engine - bucket == pytest.approx(gathered, rel=0.05) and gathered < 0.5 * 4 * sizes.total
        predicted += bucket + 4 * sizes.small  # which stay, unlike gathered parameters
    print(
        f"\nstage {zero}: predicted {predicted / 2**20:.1f} MiB, held {held / 2**20:.1f} MiB, "
        f"{predicted / held - 1:+.1%}"
    )
    assert predicted == pytest.approx(held, rel=0.05)
