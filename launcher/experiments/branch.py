"""`bigbatch branch`: a new run that shares the first steps of another one and differs from there on.

The new run directory holds the parent's checkpoint of that step as hard links, the parent's metrics up to it, and the
recipe with the changes. Its identity follows from the parent's identity, the step and the changes, because the recipe
records the first two. Training resumes it like any other run, so a branch is as exact as a resumed run.
"""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from data.atomic_io import rename_durably, write_durably
from launcher.checkpoints.checkpoint import (
    MANIFEST,
    Checkpoint,
    DamagedCheckpoint,
    checkpoint_path,
    open_checkpoint,
    saved_steps,
)
from launcher.recipe_shards import open_shards
from launcher.runs.metadata import RunMetadata
from launcher.runs.metrics import best_accuracy
from launcher.runs.run_directory import RunDirectory
from launcher.training.run_description import describe_dataset
from recipes.errors import UserError
from recipes.load import override
from recipes.lr_scaling import lr_note
from recipes.parsing import parse_json
from recipes.run_sections import BranchSettings
from recipes.schedule import StepSchedule
from recipes.schema import Recipe

# Keys of `model` that change no tensor of the training state.
_FREE_MODEL_KEYS = {"drop_path"}


def branch(parent: RunDirectory, new: Path, step: int | None, changes: list[str]) -> Recipe:
    """Make the run directory `new`, a branch of `parent` after `step` finished steps; return its recipe.

    Args:
        step: of a checkpoint of the parent; None: the newest.
        changes: overrides of recipe keys that hold from this step on.

    Raises:
        UserError: there is no such checkpoint, `new` exists, or a change is not possible inside a run.
    """
    if os.path.lexists(new) and not (new.is_dir() and not any(new.iterdir())):
        raise UserError(f"{new} exists already: choose another directory for the branch")
    recipe, metadata = parent.recipe(), parent.metadata()
    checkpoint = _checkpoint_at(parent, step)
    origin = BranchSettings(run=str(parent.path.absolute()), identity=recipe.identity(), step=checkpoint.step)
    changed = override(recipe, [f"name={json.dumps(new.name)}", *changes]).model_copy(update={"branch": origin})
    _check_state_fits(recipe, changed)
    metadata = _metadata(changed, metadata, moved_data=recipe.data.path != changed.data.path)
    if checkpoint.step >= metadata.total_steps:
        raise UserError(
            f"the schedule of the branch ends at step {metadata.total_steps}, and it begins at step {checkpoint.step}: "
            f"add e.g. schedule.epochs={checkpoint.step // metadata.steps_per_epoch + recipe.schedule.epochs}"
        )
    _write(parent, new, changed, metadata, checkpoint)
    return changed


def describe_branch(recipe: Recipe, parent: RunDirectory, new: RunDirectory) -> list[str]:
    """Return sentences about a branch that was just made: where it begins, and what its step number means there."""
    assert recipe.branch is not None
    step, before, after = recipe.branch.step, parent.metadata(), new.metadata()
    found = [f"{new.path}: shares steps 1 to {step} with {parent.path} and ends at step {after.total_steps}"]
    if before.steps_per_epoch != after.steps_per_epoch:
        found.append(
            f"note: step {step} was epoch {step / before.steps_per_epoch:.2f} of the parent and is epoch "
            f"{step / after.steps_per_epoch:.2f} of the branch, whose epochs have {after.steps_per_epoch} steps"
        )
    if note := lr_note(recipe):
        found.append(f"note: {note}")
    return found


def _checkpoint_at(parent: RunDirectory, step: int | None) -> Checkpoint:
    saved = sorted(saved_steps(parent.checkpoints))
    if not saved:
        raise UserError(f"{parent.path} has no checkpoint to branch from: let it train until it has saved one")
    step = saved[-1] if step is None else step
    if step not in saved:
        listed = ", ".join(map(str, saved))
        raise UserError(
            f"{parent.path} has no checkpoint of step {step}: use --at-step with one of {listed}, or keep more with "
            f"run.keep or run.keep_every"
        )
    try:
        return open_checkpoint(checkpoint_path(parent.checkpoints, step))
    except DamagedCheckpoint as error:
        raise UserError(f"{error}: use --at-step with another one of {', '.join(map(str, saved))}") from None


def _check_state_fits(old: Recipe, new: Recipe) -> None:
    """Refuse changes after which the training state of the checkpoint has missing or meaningless parts."""
    before, after = old.to_dict(), new.to_dict()
    fixed = {f"model.{key}" for key in before["model"] if key not in _FREE_MODEL_KEYS} | {"data.classes"}
    fixed |= {"optimizer.name", "code.optimizer"}
    for key in sorted(fixed):
        section, name = key.split(".")
        if before[section][name] != after[section][name]:
            raise UserError(
                f"{key} cannot change inside a run, where it is {before[section][name]}: to start another run from "
                f"these weights, train it with model.weights=RUN"
            )
    for key, one, other in (
        ("ema.decay", old.ema.decay is None, new.ema.decay is None),
        ("optimizer.momentum", old.optimizer.momentum == 0, new.optimizer.momentum == 0),
    ):
        if one != other:
            raise UserError(f"{key} cannot be switched on or off inside a run, only changed: leave it out")


def _metadata(recipe: Recipe, parent: RunMetadata, moved_data: bool) -> RunMetadata:
    """Return ``run.json`` of the branch; its data set is read only if the recipe names other shards."""
    dataset = parent.dataset
    if moved_data:
        shards = open_shards(recipe)
        if list(shards.classes) != dataset.classes:
            raise UserError(
                f"the classes of {recipe.data.path} are not those of the run, or not in their order: shard the images "
                f"with the class names of the run"
            )
        dataset = describe_dataset(recipe, shards)
    schedule = StepSchedule(recipe, dataset.train_images)
    return parent.model_copy(
        update={
            "name": recipe.name,
            "recipe": recipe.name,
            "identity": recipe.identity(),
            "dataset": dataset,
            "steps_per_epoch": schedule.steps_per_epoch,
            "total_steps": schedule.total_steps,
        }
    )


def _write(parent: RunDirectory, new: Path, recipe: Recipe, metadata: RunMetadata, checkpoint: Checkpoint) -> None:
    """Write the run directory beside its place and rename it, so that it is complete or absent."""
    unfinished = new.with_name(f".{new.name}-{os.getpid()}")
    run = RunDirectory(unfinished)
    try:
        run.checkpoints.mkdir(parents=True)
        shared = [event for event in parent.metrics.events() if event["step"] <= checkpoint.step]
        checkpoints = [checkpoint]
        best = best_accuracy(event for event in shared if event["event"] == "evaluation")
        if best and best.step != checkpoint.step and best.step in saved_steps(parent.checkpoints):
            # The best evaluation of the shared steps is one of the branch too, so `export --best` needs its weights.
            checkpoints.append(open_checkpoint(checkpoint_path(parent.checkpoints, best.step)))
        for found in checkpoints:
            _link(found, run.checkpoints, {"identity": metadata.identity, "dataset": metadata.dataset.digest})
        run.write(recipe, metadata)
        run.metrics.write_shared(shared)
        if new.is_dir():
            new.rmdir()
        rename_durably(unfinished, new)
    except (OSError, DamagedCheckpoint) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"the branch {new} cannot be made ({reason}): the parent is untouched, try again") from None
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _link(checkpoint: Checkpoint, folder: Path, about: dict[str, str]) -> None:
    """Make the checkpoint one of another run: its tensors are hard links, its manifest names that run.

    Nothing ever changes a file of a checkpoint, so two runs can share one. On another file system it is copied.
    """
    place = checkpoint_path(folder, checkpoint.step)
    place.mkdir()
    for name in checkpoint.files:
        try:
            os.link(checkpoint.path / name, place / name)
        except OSError:
            shutil.copyfile(checkpoint.path / name, place / name)
    manifest: dict[str, Any] = parse_json((checkpoint.path / MANIFEST).read_text())
    manifest["about"] = {**manifest["about"], **about}
    write_durably(place / MANIFEST, json.dumps(manifest, indent=1).encode())
