"""A run that is out of memory in its first steps retries with smaller micro-batches, and has the same curve."""

import hashlib
import json
import os
import weakref
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator

from launcher.cut import cut_batch
from launcher.planning.engine_rules import with_default_engine
from launcher.runs.run_directory import RunDirectory
from launcher.training.fit_micro_batch import fit_micro_batch
from launcher.training.train import StartOptions, train
from models.prepared import prepare_model
from recipes.errors import UserError
from recipes.load import load
from recipes.schema import Recipe
from tests.launcher.comparison import assert_same_curve, assert_same_state
from tests.launcher.conftest import SMALL
from tests.launcher.process_group import Group, train_until

STEPS = 4
SHORT = ["batch.global=64", "batch.slices=4", "schedule.warmup_epochs=0"]


def limit(images: int, of_rank: int, from_step: int = 0) -> None:
    """Let the middle of the model run out of memory on one rank, in a forward pass of more than so many images."""
    from launcher.engines.base import Engine
    from models.stochastic_depth import KeyedDropPath

    forward, update, steps = KeyedDropPath.forward, Engine.update, 0

    def limited(self, x):
        is_here = int(os.environ.get("RANK", 0)) == of_rank and not x.is_meta  # a tensor of shapes takes no memory
        if self.training and len(x) > images and steps >= from_step and is_here:
            raise torch.OutOfMemoryError("out of memory, as a test wants it")
        return forward(self, x)

    def counted(self, *arguments):
        nonlocal steps
        update(self, *arguments)
        steps += 1

    KeyedDropPath.forward, Engine.update = limited, counted


def train_within_limit(recipe: Recipe, run: Path, micro_batch: int, **limits) -> None:
    """Train on each rank; write a digest of every image of a step, and the number of gradient buffers."""
    from launcher.training.loop import Training

    if limits:
        limit(**limits)
    add, seen, gradients, parameters = Training._micro_batch, {}, set(), set()

    def recorded(self, batch, last):
        loss = add(self, batch, last)
        for position, image in zip(batch.positions.tolist(), self.preprocessor.images(batch)):
            seen[f"{batch.step} {position}"] = hashlib.sha256(image.numpy().tobytes()).hexdigest()
        parameters.update(self.engine.names.values())
        gradients.update(parameter.grad.data_ptr() for parameter in self.engine.names if parameter.grad is not None)
        return loss

    Training._micro_batch = recorded
    train_until(recipe, run, step=STEPS, micro_batch=micro_batch)
    run.with_name(f"{run.name} {os.environ['RANK']}.json").write_text(
        json.dumps([seen, len(gradients), len(parameters)])
    )


@pytest.fixture(scope="module")
def recipe(digits):
    return lambda *changes: load("demo", [*SMALL, *SHORT, f"data.path={digits}", *changes])


@pytest.fixture(scope="module")
def undisturbed(recipe, tmp_path_factory) -> Path:
    run = tmp_path_factory.mktemp("runs") / "undisturbed"
    Group(2, recipe(), run, train_within_limit, micro_batch=8).finish()
    return run


def images_of(run: Path) -> dict[str, str]:
    found = {}
    for rank in range(2):
        found |= json.loads(run.with_name(f"{run.name} {rank}.json").read_text())[0]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("from_step", [0, 1])
def test_all_processes_halve_together_and_do_the_step_again(recipe, undisturbed, tmp_path, from_step):
    """One of 2 ranks runs out of memory, in the very first pass or only once the optimizer has its state."""
    run = tmp_path / "run"
    Group(2, recipe(), run, train_within_limit, micro_batch=32, images=8, of_rank=1, from_step=from_step).finish()
    when = ["before the first step", "in step 1"][from_step]
    said = [line for line in (tmp_path / "run.log").read_text().splitlines() if line.startswith("out of memory")]
    assert said == [
        f"out of memory {when} with micro-batch 32: retrying with 16, which gives the same result "
        f"(64 = 2 processes × 16 × 2 accumulation steps)",
        f"out of memory {when} with micro-batch 16: retrying with 8, which gives the same result "
        f"(64 = 2 processes × 8 × 4 accumulation steps)",
    ]
    assert_same_curve(run, undisturbed, steps=STEPS)
    assert_same_state(run, undisturbed)
    assert images_of(run) == images_of(undisturbed)
    cuts = [event["cut"] for event in RunDirectory(run).metrics.events() if event["event"] in ("start", "cut")]
    assert cuts[-1] == "64 = 2 processes × 8 × 4 accumulation steps"


@pytest.mark.slow
def test_gradients_of_several_processes_are_in_memory_once(undisturbed):
    """They stay in DDP's buckets through all micro-batches of all steps."""
    for rank in range(2):
        gradients, parameters = json.loads(undisturbed.with_name(f"undisturbed {rank}.json").read_text())[1:]
        assert gradients == parameters


@pytest.mark.slow
def test_under_zero_the_memory_probe_comes_before_any_communication(recipe, undisturbed, tmp_path):
    run = tmp_path / "run"
    Group(2, recipe("engine.zero=3"), run, train_within_limit, micro_batch=32, images=8, of_rank=1).finish()
    assert "retrying with 8, which gives the same result" in (tmp_path / "run.log").read_text()
    assert_same_curve(run, undisturbed, steps=STEPS)


def test_the_large_block_of_the_memory_probe_goes_back_to_the_gpu(monkeypatch):
    """Kept in the allocator's cache, it would be split for the engine's tensors, and the memory would fragment."""
    recipe = with_default_engine(load("demo", [*SMALL, *SHORT]))
    prepared, cut = prepare_model(recipe, 10), cut_batch(recipe, 1, 8, 8)
    make_empty, placeholders, held_when_cleared = torch.empty, [], []

    def empty(*arguments, **options):
        made = make_empty(*arguments, **options)
        if options.get("dtype") == torch.uint8:
            placeholders.append(weakref.ref(made))
        return made

    monkeypatch.setattr(torch, "empty", empty)
    monkeypatch.setattr("accelerate.utils.memory.is_cuda_available", lambda: True)
    monkeypatch.setattr(
        torch.cuda, "empty_cache", lambda: held_when_cleared.append([made() is not None for made in placeholders])
    )
    assert fit_micro_batch(recipe, prepared.module, prepared.drop_path, Accelerator(cpu=True), cut, 1) == cut
    assert held_when_cleared == [[False]], "the cache is cleared once, after the placeholder is gone"


NOT_SMALLER = {
    "one image": ([], 1, 0, "with micro-batch 1 "),
    "a statistics batch": (
        ["model.name=test_resnet", "model.layer_scale=null", "batch.statistics=8"],
        16,
        7,
        "with micro-batch 8 ",
    ),
}


@pytest.mark.parametrize("case", NOT_SMALLER)
def test_where_a_micro_batch_cannot_be_smaller_the_error_names_what_helps(recipe, tmp_path, monkeypatch, case):
    changes, micro_batch, images, part = NOT_SMALLER[case]
    from launcher.engines.base import Engine
    from models.stochastic_depth import KeyedDropPath

    monkeypatch.setattr(KeyedDropPath, "forward", KeyedDropPath.forward)
    monkeypatch.setattr(Engine, "update", Engine.update)
    limit(images=images, of_rank=0)
    with pytest.raises(UserError, match=part) as caught:
        train(recipe(*changes), tmp_path / "run", StartOptions(micro_batch=micro_batch, workers=0))
    assert "engine.checkpoint_activations=true" in str(caught.value) and "\n" not in str(caught.value)
