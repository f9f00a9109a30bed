"""Trains a run in one of its processes, from opening the shards to closing the engine."""

import time
from dataclasses import dataclass
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from data.reading.shards import ShardSet
from launcher.checkpoints.retention import Retention
from launcher.checkpoints.writer import CheckpointWriter, new_attempt
from launcher.cut import Cut
from launcher.engines.base import Engine, make_accelerator
from launcher.planning.accelerate_config import with_accelerate_config
from launcher.planning.auto_engine import EngineChoice, choose_engine_here
from launcher.recipe_shards import open_shards
from launcher.runs.run_directory import RunDirectory
from launcher.training.evaluate_and_save import BetweenSteps
from launcher.training.event_log import EventLog
from launcher.training.head_features import compute_features, trains_on_features
from launcher.training.loop import Training
from launcher.training.noise_meter import why_not_measured
from launcher.training.run_description import describe_run, describe_start, initial_weights_sha256, own_code_note
from launcher.training.start import find_checkpoint, start_engine
from launcher.training.step_profile import StepProfile
from launcher.training.trackers import Trackers, check_trackers
from launcher.training.user_code_checks import check_code_is_found
from launcher.workers import default_workers
from launcher.world import print_on_main, this_process
from models.prepared import prepare_model
from recipes.errors import UserCodeError, UserError
from recipes.schedule import StepSchedule
from recipes.schema import Recipe


@dataclass(frozen=True)
class StartOptions:
    """How one start of a run uses the machine. None of it is part of the recipe, so none of it changes the curve.

    Attributes:
        micro_batch: images per forward and backward pass; None: what the plan recommends for GPUs, at most 64 on a CPU.
        workers: loader processes per training process; None: as many as the CPUs allow; 0: none.
        shards_copy: a folder with a copy of the recipe's shards to read instead, e.g. on the node's own disk.
        profile: how many micro-batches the main process profiles soon after the start; None: no profile.
        audit: steps between two in which ranks repeat each other's part, to find a node that computes wrongly; None:
            never (`launcher.training.audit`).
        submitted: whether this start belongs to a submitted job. The job's ledger then decides who may train in the run
            directory. Its file lock is not used, because a lost node may never release it.
    """

    micro_batch: int | None = None
    workers: int | None = None
    shards_copy: Path | None = None
    profile: int | None = None
    audit: int | None = None
    submitted: bool = False


def train(recipe: Recipe, run_path: str | Path, options: StartOptions | None = None) -> bool:
    """Train the recipe in this process and its peers, or resume its run in `run_path`; return whether it is finished.

    Weights come from the first of these that exists: the run's newest valid checkpoint, `model.weights`, the recipe's
    seed.

    Raises:
        UserError: the user can correct the cause. It is raised before the first step whenever that is possible.
        WrongResult: an audit has found a rank that computes wrongly.
    """
    options = options or StartOptions()
    if not isinstance(recipe, Recipe):
        raise UserError(f"train takes a recipe, not {recipe!r}: load it with bigbatch.load_recipe first")
    check_code_is_found(recipe)
    check_trackers(recipe)
    shards = open_shards(recipe, options.shards_copy)
    schedule = StepSchedule(recipe, len(shards.split("train")))
    run = _claim_run_directory(run_path, recipe, shards, options)

    recipe = with_accelerate_config(recipe)
    accelerator = make_accelerator(recipe)
    model = prepare_model(recipe, len(shards.classes))
    choice = choose_engine_here(recipe, len(shards.classes), accelerator, options.micro_batch, model.has_batch_norm)
    recipe = choice.recipe
    checkpoint = find_checkpoint(accelerator, run, recipe, shards)
    step = checkpoint.step if checkpoint else 0
    uses_features = trains_on_features(recipe, model)
    engine, cut = start_engine(recipe, model, list(shards.classes), accelerator, choice.cut, checkpoint)

    if engine.is_main:
        weights_sha256 = initial_weights_sha256(recipe, run, resumes=checkpoint is not None)
        run.write(recipe, describe_run(recipe, shards, schedule, model.module, weights_sha256))
        run.metrics.truncate_after(step)
        start = describe_start(accelerator, recipe)
        if note := own_code_note(recipe, run, start):
            print_on_main(f"note: {note}")
        run.metrics.append("start", step, cut=str(cut), engine=engine.title, **start)
    _print_start(engine, choice, cut, schedule, step)

    trackers = Trackers(recipe, run, step) if engine.is_main else None
    log = EventLog(run.metrics, accelerator, schedule.steps_per_epoch, trackers)
    best_accuracy, best_step = _best_evaluation(engine, run)
    workers = default_workers() if options.workers is None else options.workers
    features = compute_features(engine, shards, run.features, workers) if uses_features else None
    between_steps = BetweenSteps(
        engine=engine,
        schedule=schedule,
        shards=shards,
        writer=_make_writer(recipe, schedule, run, accelerator, best_step, resumed_step=step if checkpoint else None),
        log=log,
        workers=workers,
        run=run,
        features=features.val if features else None,
        best_accuracy=best_accuracy,
    )
    profile = None
    if options.profile and engine.is_main:
        profile = StepProfile(run.path / "profile", options.profile, cut, accelerator.device, print_on_main)
    if note := why_not_measured(recipe, cut, model.has_batch_norm):
        print_on_main(f"note: {note}")
    audit = options.audit if accelerator.num_processes > 1 else None
    if options.audit and not audit:
        print_on_main("note: a single process has no other one to audit it")
    rows = features.train if features else None
    training = Training(
        engine, model, schedule, cut, shards, between_steps, log, workers, rows, profile, audit_every=audit
    )
    return _run_to_end(training, step, run)


def _claim_run_directory(run_path: str | Path, recipe: Recipe, shards: ShardSet, options: StartOptions) -> RunDirectory:
    """Return the run directory, created if needed, after checking that this recipe may train in it on these shards.

    This happens before the processes connect, so that a refused start ends in seconds and with one sentence.
    """
    run = RunDirectory(run_path)
    run.check_is_free_for(recipe)
    run.check_data(shards.digest)
    if this_process().is_main and not options.submitted:
        run.lock()
    return run


def _print_start(engine: Engine, choice: EngineChoice, cut: Cut, schedule: StepSchedule, step: int) -> None:
    say, recipe = print_on_main, engine.recipe
    say(f"{recipe.name}: {recipe.model.name}, {schedule.total_steps:,} steps of {cut}, {engine.title}")
    if choice.reason:
        say(f"cut: {choice.reason}")
    if step == schedule.total_steps:
        say(f"already finished, at step {step}")
    elif step:
        say(f"resumes at step {step} of {schedule.total_steps}")
    else:
        for warning in schedule.warnings():
            say(f"warning: {warning}")


def _best_evaluation(engine: Engine, run: RunDirectory) -> tuple[float, int | None]:
    """Return accuracy and step of the run's best evaluation, the same on every rank; (0.0, None) if there was none.

    Ranks must agree on it: each decides by itself whether the next evaluation is better and is saved.
    """
    best = broadcast_object_list([run.metrics.best() if engine.is_main else None])[0]
    return (best.top1, best.step) if best else (0.0, None)


def _make_writer(
    recipe: Recipe,
    schedule: StepSchedule,
    run: RunDirectory,
    accelerator: Accelerator,
    best_step: int | None,
    resumed_step: int | None,
) -> CheckpointWriter:
    """Return this rank's checkpoint writer; no rank returns before the main one has made the folder and cleaned it."""
    every = recipe.run.keep_every * schedule.steps_per_epoch if recipe.run.keep_every else None
    writer = CheckpointWriter(
        run.checkpoints,
        Retention(recipe.run.keep, every=every, best=best_step),
        accelerator.process_index,
        accelerator.num_processes,
        attempt=broadcast_object_list([new_attempt()])[0],
        resumed_step=resumed_step,
    )
    accelerator.wait_for_everyone()
    return writer


def _run_to_end(training: Training, step: int, run: RunDirectory) -> bool:
    """Train from `step`, say how it ended, and close the engine; return whether the schedule is finished."""
    engine, total = training.engine, training.schedule.total_steps
    say = print_on_main
    engine.module.train()
    started = time.monotonic()
    try:
        reached = training.train(step)
    except UserError as error:
        # A rank other than the main one can fail alone, e.g. because its disk is full: its message names the rank.
        if engine.is_main:
            raise
        prefix = f"[rank {engine.accelerator.process_index}] "
        raise (
            error.with_prefix(prefix) if isinstance(error, UserCodeError) else UserError(f"{prefix}{error}")
        ) from None
    finished = reached == total
    if replaced := training.unreadable.replaced:
        say(f"{replaced} unreadable images were replaced; `bigbatch verify {training.shards.root}` names them")
    if engine.is_main:
        run.metrics.append("finish" if finished else "stop", reached, seconds=round(time.monotonic() - started, 1))
    say(f"{'finished' if finished else f'stopped and saved at step {reached} of {total}'}: {run.path}")
    engine.close()
    if training.log.trackers:
        training.log.trackers.finish()
    engine.accelerator.end_training()
    return finished
