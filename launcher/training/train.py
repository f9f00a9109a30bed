"""One process of a training run: put the parts together, find where to start, and train."""

import time
import warnings
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate.utils import broadcast_object_list
from torch import nn

from data.reading.shards import ShardSet
from launcher.checkpoints import checkpoint
from launcher.checkpoints.retention import Retention
from launcher.checkpoints.writer import CheckpointWriter, new_attempt
from launcher.cut import Cut, unit_of_cut
from launcher.engines.base import Engine, load_model, make_accelerator
from launcher.engines.data_parallel import DataParallel
from launcher.evaluation.saved_weights import load_weights
from launcher.planning.accelerate_config import with_accelerate_config
from launcher.planning.auto_engine import choose_engine_here
from launcher.recipe_shards import open_shards
from launcher.runs.run_directory import RunDirectory
from launcher.training.fit_micro_batch import fit_micro_batch
from launcher.training.loop import Training
from launcher.training.step_profile import StepProfile
from launcher.workers import default_workers
from launcher.world import this_process
from models.build import build, checkpoint_activations, compile_blocks, scale_head
from models.cost import multiply_adds
from models.prepared import prepare_model
from recipes.errors import UserError
from recipes.schedule import StepSchedule
from recipes.schema import Recipe


def train(
    recipe: Recipe,
    run_path: Path,
    micro_batch: int | None = None,
    workers: int | None = None,
    shards_at: Path | None = None,
    profile: int | None = None,
    submitted: bool = False,
) -> bool:
    """Train the recipe, or go on with the run in that directory, in this process and its peers; return whether it is finished.

    Weights are initialised in this order: the run's own newest whole checkpoint; else `model.weights`; else from the seed.

    Args:
        run_path: where the run is kept.
        micro_batch: images per forward and backward pass; None: what the plan for the GPUs recommends, on a CPU at most 64.
        workers: processes that prepare images, per training process; None: what the CPUs allow; 0: none.
        shards_at: a copy of the recipe's shards to read instead.
        profile: micro-batches for the main process to profile, soon after the start.
        submitted: a job's ledger says who may train here, also when a node is lost with its locks.

    Raises:
        UserError: anything the user can put right, before the first step wherever that is possible.
    """
    shards = open_shards(recipe, shards_at)
    schedule = StepSchedule(recipe, len(shards.split("train")))
    run = RunDirectory(run_path)
    run.check_is_free_for(recipe)
    run.check_data(shards.digest)
    if not submitted and this_process().is_main:
        run.hold()

    recipe = with_accelerate_config(recipe)
    accelerator = make_accelerator(recipe, tracking=run.tensorboard)
    say = accelerator.print
    prepared = prepare_model(recipe, len(shards.classes))
    model = prepared.module
    choice = choose_engine_here(recipe, len(shards.classes), accelerator, micro_batch, prepared.has_batch_norm)
    recipe, cut = choice.recipe, choice.cut
    if recipe.engine.checkpoint_activations:
        checkpoint_activations(model)

    newest = _newest_checkpoint(accelerator, run)
    saved = newest.reader() if newest else None
    if saved:
        load_model(model, saved)
    else:
        _load_given_weights(model, recipe, say)
    if accelerator.num_processes > 1 or recipe.engine.zero:  # what one process runs out of alone, the loop sees in time
        cut = fit_micro_batch(
            recipe, model, prepared.drop_path, accelerator, cut, unit_of_cut(recipe, prepared.has_batch_norm)
        )
    if recipe.engine.compile:
        compile_blocks(model)
    engine = make_engine(recipe, model, accelerator, cut)
    step = 0
    if saved:
        step = newest.step
        engine.load_state(saved)

    if engine.is_main:
        run.write_description(recipe, _facts(recipe, shards, schedule, model))
        run.metrics.truncate_after(step)
        device, precision = _device_name(accelerator.device), _precision(accelerator)
        run.metrics.append("start", step, cut=str(cut), engine=engine.title, device=device, precision=precision)
    accelerator.init_trackers("curves", init_kwargs={"tensorboard": {"purge_step": step + 1}})
    say(f"{recipe.name}: {recipe.model.name}, {schedule.total_steps:,} steps of {cut}, {engine.title}")
    if choice.reason:
        say(f"cut: {choice.reason}")
    if step:
        say(f"continues at step {step} of {schedule.total_steps}")
    for warning in [] if step else schedule.warnings():
        say(f"warning: {warning}")

    best = broadcast_object_list([run.metrics.best() if engine.is_main else None])[0]
    writer = CheckpointWriter(
        run.checkpoints,
        Retention(
            recipe.run.keep,
            every=(recipe.run.keep_every or 0) * schedule.steps_per_epoch or None,
            best=best.step if best else None,
        ),
        accelerator.process_index,
        accelerator.num_processes,
        attempt=broadcast_object_list([new_attempt()])[0],
        resumed_step=step if newest else None,
    )
    accelerator.wait_for_everyone()
    workers = default_workers() if workers is None else workers
    training = Training(
        engine,
        prepared.drop_path,
        prepared.bn_stats,
        schedule,
        cut,
        shards,
        run,
        writer,
        workers,
        best.top1 if best else 0.0,
    )
    if profile and engine.is_main:
        training.profile = StepProfile(run.path / "profile", profile, cut, accelerator.device, say)
    engine.module.train()
    started = time.monotonic()
    try:
        reached = training.train(step)
    except UserError as error:
        raise UserError(str(error) if engine.is_main else f"[rank {accelerator.process_index}] {error}") from None
    finished = reached == schedule.total_steps
    if training.replaced:
        say(f"{training.replaced} unreadable photographs were replaced; `bigbatch verify {shards.root}` names them")
    if engine.is_main and finished:
        run.metrics.append("finish", reached, seconds=round(time.monotonic() - started, 1))
    say(f"{'finished' if finished else f'stopped and saved at step {reached} of {schedule.total_steps}'}: {run_path}")
    engine.close()
    accelerator.end_training()
    return finished


def _load_given_weights(model: nn.Module, recipe: Recipe, say) -> None:
    if recipe.model.weights:
        for note in load_weights(model, recipe, say):
            say(f"weights: {note}")
    if recipe.model.head_init_scale is not None:
        scale_head(model, recipe.model.head_init_scale)


def make_engine(recipe: Recipe, model: nn.Module, accelerator, cut: Cut) -> Engine:
    if recipe.engine.zero == 0:
        return DataParallel(recipe, model, accelerator)
    from launcher.engines.zero import Zero  # importing DeepSpeed takes seconds

    return Zero(recipe, model, accelerator, cut)


def _newest_checkpoint(accelerator, run: RunDirectory) -> checkpoint.Checkpoint | None:
    """The main process looks and checks; all take its choice."""
    found = None
    if accelerator.is_main_process:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            found = checkpoint.latest_valid(run.checkpoints)
        for warning in caught:
            accelerator.print(f"warning: {warning.message}")
    return broadcast_object_list([found])[0]


def _facts(recipe: Recipe, shards: ShardSet, schedule: StepSchedule, model: nn.Module) -> dict:
    return {
        "name": recipe.name,
        "recipe": recipe.name,
        "identity": recipe.identity(),
        "dataset": {
            "name": recipe.data.name,
            "digest": shards.digest,
            "train_images": len(shards.split("train")),
            "val_images": len(shards.splits["val"]) if "val" in shards.splits else 0,
            "classes": list(shards.classes),
        },
        "model": {
            "name": recipe.model.name,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "multiply_adds": _cost(recipe, len(shards.classes)),
        },
        "steps_per_epoch": schedule.steps_per_epoch,
        "total_steps": schedule.total_steps,
        "versions": {name: version(name) for name in ("bigbatch", "torch", "timm", "accelerate")},
    }


def _cost(recipe: Recipe, classes: int) -> int | None:
    """Multiply-adds for one image, for the report; None for a model whose shapes alone cannot be passed through it."""
    with torch.device("meta"):
        model = build(recipe, classes)
    try:
        return multiply_adds(model, recipe.input.size)
    except (
        Exception
    ):  # whatever a model does with a tensor that has no values; no run may end for a figure in its report
        return None


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU"


def _precision(accelerator) -> str:
    return {"no": "float32"}.get(accelerator.mixed_precision, accelerator.mixed_precision)
