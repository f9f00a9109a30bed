"""Makes the engine of a run with its starting state: from a checkpoint, from given weights, or from the seed."""

import warnings
from importlib.util import find_spec

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from data.reading.shards import ShardSet
from launcher.checkpoints.checkpoint import Checkpoint, latest_valid
from launcher.cut import Cut, unit_of_cut
from launcher.engines.base import Engine, load_model
from launcher.engines.data_parallel import DataParallel
from launcher.engines.disk_offload import check_disk_offload
from launcher.evaluation.initial_weights import load_initial_weights
from launcher.runs.run_directory import RunDirectory
from launcher.training.fit_micro_batch import fit_micro_batch
from launcher.training.on_all_ranks import raised_on_all_ranks
from launcher.world import print_on_main, this_process
from models.build import checkpoint_activations, compile_blocks, scale_head
from models.prepared import PreparedModel
from models.pretrained import cached_timm_file
from recipes.errors import UserError
from recipes.schema import Recipe
from recipes.sections import TIMM


def find_checkpoint(accelerator: Accelerator, run: RunDirectory, recipe: Recipe, shards: ShardSet) -> Checkpoint | None:
    """Return the newest valid checkpoint of the run, the same on every rank; None for a run that has none yet.

    Only the main process reads and verifies the files, because checksums of a large model on a shared disk take
    minutes.

    Raises:
        UserError: on every rank, if the checkpoint belongs to another recipe or other shards, or if the run had a
            checkpoint and none is left that can be used.
    """
    found = None
    with raised_on_all_ranks():
        if accelerator.is_main_process:
            found = _newest_of(run, recipe, shards)
    newest: Checkpoint | None = broadcast_object_list([found])[0]
    return newest


def _newest_of(run: RunDirectory, recipe: Recipe, shards: ShardSet) -> Checkpoint | None:
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = latest_valid(run.checkpoints)
    for warning in caught:
        print_on_main(f"warning: {warning.message}")
    if found:
        _check_belongs_to(found, run, recipe, shards)
    elif recipe.branch:
        raise UserError(
            f"{run.path} has no checkpoint, and a branch begins with one of its parent's: make the branch again with "
            f"`bigbatch branch {recipe.branch.run} NEW --at-step {recipe.branch.step}`"
        )
    else:
        _check_nothing_is_lost(run)
    return found


def _check_nothing_is_lost(run: RunDirectory) -> None:
    """Refuse to start a run from step 0 if its checkpoints are gone. A run that was never saved starts over.

    The event of a save is written when the save begins, so a single one may belong to a save that was killed. A second
    save, the end of a run, or a start that resumed proves that there was a complete checkpoint.

    Raises:
        UserError: the run had a checkpoint.
    """
    events = run.metrics.events()
    saves = {event["step"] for event in events if event["event"] == "checkpoint"}
    ended = any(event["event"] in ("finish", "stop") for event in events)
    resumed = any(event["event"] == "start" and event["step"] > 0 for event in events)
    if len(saves) > 1 or ended or resumed or (saves and not run.checkpoints.is_dir()):
        raise UserError(
            f"the checkpoints in {run.checkpoints} are gone, but the run was saved before: restore them from a backup, "
            f"or start anew with another --run-dir or after removing {run.path}"
        )
    steps = max((event["step"] for event in events), default=0)
    if steps:
        print_on_main(f"the {steps} steps in {run.path} were never saved: training starts over at step 0")


def _check_belongs_to(checkpoint: Checkpoint, run: RunDirectory, recipe: Recipe, shards: ShardSet) -> None:
    """Check that a checkpoint belongs to this recipe and shards, even if ``recipe.yaml`` and ``run.json`` are lost.

    Raises:
        UserError: the checkpoint's identity or digest differs.
    """
    # Version 0.1.0 hashed the path of a weights file, which may have been moved. If the run directory has a recipe,
    # `RunDirectory.check_recipe` has compared it already.
    path_may_differ = run.recipe_file.is_file() and recipe.model.weights_path is not None
    same_recipe = recipe.has_identity(checkpoint.metadata["identity"]) or path_may_differ
    same_data = checkpoint.metadata["dataset"] == shards.digest
    if not (same_recipe and same_data):
        what = "data set" if same_recipe else "recipe"
        raise UserError(
            f"checkpoint {checkpoint.path} was written by a run with another {what}, so training cannot resume from "
            f"it: give the {what} of that run, or choose another --run-dir"
        )


def start_engine(
    recipe: Recipe,
    model: PreparedModel,
    classes: list[str],
    accelerator: Accelerator,
    cut: Cut,
    checkpoint: Checkpoint | None,
) -> tuple[Engine, Cut]:
    """Return the engine with the state to train from, and the cut, whose micro-batch is smaller if memory is short.

    Args:
        recipe: with its engine chosen.
        model: with its initial weights.
        classes: the names of the shards' classes, in the order of the model's outputs.
        accelerator: of this process.
        cut: the planned cut.
        checkpoint: the one to resume from; None: begin with `model.weights` or with weights drawn from the seed.

    Raises:
        UserError: no micro-batch fits, the given weights do not fit the model, or DeepSpeed or what it needs for an
            offload to a disk is missing.
    """
    check_disk_offload(recipe)  # before a download, where "auto" has chosen it just now
    if recipe.engine.checkpoint_activations:
        checkpoint_activations(model.module)
    saved = checkpoint.reader() if checkpoint else None
    if saved:
        load_model(model.module, saved)
    else:
        _load_given_weights(model.module, recipe, classes)
    # A single process without ZeRO needs no memory probe: the training loop catches the error and retries.
    if accelerator.num_processes > 1 or recipe.engine.zero:
        unit = unit_of_cut(recipe, model.has_batch_norm)
        cut = fit_micro_batch(recipe, model.module, model.drop_path, accelerator, cut, unit)
    if recipe.engine.compile:
        compile_blocks(model.module)  # after the probe, which would otherwise compile for micro-batches that do not fit
    engine = make_engine(recipe, model.module, accelerator, cut)
    if saved:
        engine.load_state(saved)
    return engine, cut


def make_engine(recipe: Recipe, model: nn.Module, accelerator: Accelerator, cut: Cut) -> Engine:
    """Return the recipe's engine: DDP, or ZeRO if `engine.zero` is a stage from 1 to 3.

    Raises:
        UserError: the recipe uses ZeRO and DeepSpeed is not installed.
    """
    if recipe.engine.zero == 0:
        return DataParallel(recipe, model, accelerator)
    if find_spec("deepspeed") is None:
        raise UserError(
            f"engine.zero={recipe.engine.zero} needs DeepSpeed, which is not installed here and is available on Linux "
            f"only: use engine.zero=0"
        )
    from launcher.engines.zero import Zero  # only here: importing DeepSpeed takes seconds

    return Zero(recipe, model, accelerator, cut)


def _load_given_weights(model: nn.Module, recipe: Recipe, classes: list[str]) -> None:
    if recipe.model.weights == TIMM:
        _download_by_turns(recipe.model.name)
    for note in load_initial_weights(model, recipe, classes, print_on_main):
        print_on_main(f"weights: {note}")
    if recipe.model.head_init_scale is not None:
        scale_head(model, recipe.model.head_init_scale)


def _download_by_turns(name: str) -> None:
    """Download timm's weights of a model once per cache: on the main rank, then on the first rank of each node.

    The others wait. Nodes that share a cache find the weights of the main rank there.

    Raises:
        UserError: on every rank, if the weights are not available to one of them.
    """
    world = this_process()
    # Accelerate's `is_local_main_process` is true on every rank where each process sees one GPU.
    for is_my_turn in (world.is_main, world.local_rank == 0):
        with raised_on_all_ranks():
            if is_my_turn:
                cached_timm_file(name)
