"""Where the user chooses neither engine nor micro-batch, the plan for the GPUs decides, and the run is the same."""

from dataclasses import replace
from pathlib import Path

import pytest

from launcher.planning import auto_engine
from launcher.planning.auto_engine import choose_engine
from launcher.planning.gpus import GPUS
from launcher.planning.memory_model import GIB
from launcher.planning.model_profile import UnpredictableModelError, profile_model
from launcher.planning.plan import feasible_options, recommend
from launcher.planning.speeds import Measurement
from launcher.planning.time_model import Hardware
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError
from recipes.load import load
from recipes.schema import Recipe
from tests.launcher.conftest import SMALL
from tests.launcher.process_group import Group, train_until

AMPLE = Hardware(2, 2, 16 * GIB, GPUS["a100"], Measurement(327, "assumed"))
CHANGES = [*SMALL, "model.drop_path=0.1", "data.classes=10", "batch.global=512", "batch.slices=4"]


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


def recipe(*changes: str) -> Recipe:
    return load("demo", [*CHANGES, *changes])


PLAIN = ["engine.zero=0", "engine.checkpoint_activations=false"]


def with_room_for(micro_batch: int) -> Hardware:
    """GPUs on which DDP fits with that micro-batch, but not with the next larger one."""
    option = feasible_options(recipe(*PLAIN), profile_model(recipe(), "float32"), AMPLE, micro_batch)[0]
    return replace(AMPLE, memory=option.memory.peak)


def test_the_recommended_option_is_taken_and_the_recipe_stays_the_same():
    hardware = with_room_for(16)
    chosen = choose_engine(recipe(), 10, 2, None, False, hardware)
    option = recommend(feasible_options(recipe(), profile_model(recipe(), "float32"), hardware))
    assert chosen.cut == option.cut and chosen.recipe.engine == option.recipe.engine and option.engine in chosen.reason
    assert chosen.recipe.identity() == recipe().identity()
    assert choose_engine(recipe(*PLAIN), 10, 2, None, False, hardware).cut.micro_batch == 16


def test_what_is_named_is_kept():
    hardware = with_room_for(64)
    assert choose_engine(recipe(), 10, 2, 16, False, hardware).cut.micro_batch == 16
    engine = choose_engine(
        recipe("engine.zero=2", "engine.checkpoint_activations=true"), 10, 2, None, False, hardware
    ).recipe.engine
    assert engine.zero == 2 and engine.checkpoint_activations is True
    assert choose_engine(recipe("engine.offload=cpu"), 10, 2, None, False, hardware).recipe.engine.zero in (2, 3)
    with pytest.raises(UserError, match="engine.compile=true does not work with engine.zero=3"):
        choose_engine(recipe("engine.compile=true", "engine.zero=3"), 10, 2, None, False, hardware)


def test_what_does_not_fit_is_refused_with_what_does():
    hardware = with_room_for(8)
    with pytest.raises(
        UserError,
        match="micro-batch 256, which needs .* leave micro-batch and engine to auto, which takes .* with micro-batch",
    ):
        choose_engine(recipe("engine.zero=0", "engine.checkpoint_activations=false"), 10, 2, 256, False, hardware)
    with pytest.raises(
        UserError, match="does not fit 2 GPUs of 0.5 GiB in any way; nearest is .* use GPUs of at least that"
    ):
        choose_engine(recipe(), 10, 2, None, False, replace(hardware, memory=GIB // 2))


def test_without_a_gpu_or_a_trace_it_is_plain_data_parallelism_and_said_so(monkeypatch):
    chosen = choose_engine(recipe(), 10, 2, None, False, None)
    assert chosen.cut.micro_batch == 64 and chosen.recipe.engine.zero == 0
    assert chosen.reason == "at most 64 images at a time, because there is no GPU to plan for"
    assert choose_engine(recipe(), 10, 2, 32, False, None).reason == ""

    def fail(*_):
        raise UnpredictableModelError("the memory of it cannot be predicted")

    monkeypatch.setattr(auto_engine, "profile_model", fail)
    chosen = choose_engine(recipe(), 10, 2, None, False, AMPLE)
    assert chosen.cut.micro_batch == 64 and "cannot be predicted" in chosen.reason


def train_as_on_gpus(recipe: Recipe, run: Path, memory: list[int]) -> None:
    """Train in each process as if it found a GPU with that much free memory."""
    import os

    auto_engine.visible_hardware = lambda _, processes: replace(
        AMPLE, gpus=processes, memory=memory[int(os.environ["RANK"])]
    )
    train_until(recipe, run, step=1)


@pytest.mark.slow
def test_a_training_plans_for_the_fullest_of_its_gpus(digits, tmp_path):
    memory = [with_room_for(64).memory, with_room_for(32).memory]
    Group(2, recipe(*PLAIN, f"data.path={digits}"), tmp_path / "run", train_as_on_gpus, memory=memory).finish()
    start = RunDirectory(tmp_path / "run").metrics.events()[0]
    assert start["cut"] == "512 = 2 processes × 32 × 8 accumulation steps"
    assert (tmp_path / "run.log").read_text().count("cut: DDP fits with 32 images at a time") == 1
