"""`bigbatch replay`: recomputes steps of a run and compares them with what the run recorded.

Every input of a step follows from its number, and a checkpoint continues anywhere. So a step can be computed again at
any time. If the result differs, then the machine, the code or a library computes something else than it did then.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from accelerate.utils import broadcast_object_list, gather_object

from data.reading.storage import place_of
from launcher.checkpoints.checkpoint import (
    Checkpoint,
    DamagedCheckpoint,
    checkpoint_path,
    open_checkpoint,
    saved_steps,
)
from launcher.checkpoints.state_difference import TensorDifference, differences_to, first_in_order
from launcher.engines.base import Engine, make_accelerator
from launcher.experiments.replay_plan import ReplayPlan
from launcher.planning.accelerate_config import with_accelerate_config
from launcher.planning.auto_engine import choose_engine_here
from launcher.recipe_shards import open_shards
from launcher.runs.metrics import Metrics
from launcher.runs.run_directory import RunDirectory
from launcher.runs.step_layers import LayerDifference, common_layers, first_difference, rounding_of
from launcher.runs.step_setting import StepSetting
from launcher.training.event_log import EventLog
from launcher.training.head_features import compute_features, trains_on_features
from launcher.training.loop import Training
from launcher.training.progress import RunProgress
from launcher.training.run_description import describe_start
from launcher.training.start import start_engine
from launcher.training.user_code_checks import check_code_is_found
from launcher.workers import default_workers
from models.prepared import prepare_model
from recipes.errors import UserError
from recipes.schedule import StepSchedule
from recipes.schema import Recipe


@dataclass(frozen=True)
class Replayed:
    """What a replay found.

    Attributes:
        run: the run directory.
        begin: finished steps of the checkpoint from which the steps were recomputed; 0: the start of the run.
        end: the last step that was recomputed; after Ctrl-C it is earlier than the last step of the plan.
        setting: how the steps were recomputed.
        exact: whether bits were compared; otherwise differences that rounding explains do not count.
        layers: the parts of each step that were compared; version 0.1.0 recorded few.
        checkpoints: the steps whose checkpoints were compared.
        difference: the first one; None if everything is equal.
        changed: name, value then and value now of each fact about machine, cut, libraries and code that differs.
    """

    run: str
    begin: int
    end: int
    setting: StepSetting
    exact: bool
    layers: list[str]
    checkpoints: list[int]
    difference: LayerDifference | None
    changed: list[tuple[str, Any, Any]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Return it as `replay --json` prints it."""
        return asdict(self)


def replay(plan: ReplayPlan, cut_here: bool, workers: int | None = None) -> Replayed:
    """Recompute the steps of a plan with all processes of this start; return the comparison, the same on every rank.

    Args:
        cut_here: cut the batch as a run on this machine would; otherwise as the run did.
        workers: processes that prepare images; None: what the CPUs allow.

    Raises:
        UserError: shards, weights or the checkpoint are missing, or the steps cannot be cut in that way.
    """
    check_code_is_found(plan.recipe)
    path = plan.recipe.data.path
    if path and isinstance(place := place_of(path), Path) and not place.exists():
        raise UserError(f"the shards of {plan.run.path} are not in {path}: say with --data where they are now")
    shards = open_shards(plan.recipe)
    if plan.run.metadata().dataset.digest != shards.digest:
        raise UserError(f"{shards.root} holds shards other than those of {plan.run.path}: give these with --data")
    recipe = with_accelerate_config(plan.recipe) if cut_here else plan.recipe
    accelerator = make_accelerator(recipe)
    model = prepare_model(recipe, len(shards.classes))
    if cut_here:
        choice = choose_engine_here(recipe, len(shards.classes), accelerator, None, model.has_batch_norm)
    else:
        choice = plan.engine_then(accelerator.num_processes, model.has_batch_norm)
    checkpoint = _open(plan.run, plan.begin)
    uses_features = trains_on_features(choice.recipe, model)
    engine, cut = start_engine(choice.recipe, model, list(shards.classes), accelerator, choice.cut, checkpoint)
    setting = StepSetting(str(cut), engine.title, **describe_start(accelerator, choice.recipe))
    exact = _is_exact(plan, setting, choice.recipe)
    loss_rounding, weight_rounding = (0.0, 0.0) if exact else rounding_of(setting.precision)
    checks = CheckpointChecks(plan.run, engine, weight_rounding)
    count = default_workers() if workers is None else workers
    features = compute_features(engine, shards, plan.run.features, count).train if uses_features else None
    with _scratch_metrics() as metrics:
        log = EventLog(metrics, accelerator, 1)
        schedule = StepSchedule(plan.recipe, len(shards.split("train")))
        training = Training(engine, model, schedule, cut, shards, checks, log, count, features, end=plan.end)
        engine.module.train()
        end = training.train(plan.begin)  # earlier than `plan.end` after Ctrl-C
        events = {event["step"]: event for event in metrics.events() if event["event"] == "step"}
    found = [first_difference(plan.recorded[step], event, loss_rounding) for step, event in events.items()]
    found += [LayerDifference(step, "update (weights)", None, asdict(one)) for step, one in checks.found.items()]
    # Only the main process has the events of the steps.
    layers = common_layers(*next(((plan.recorded[step], event) for step, event in events.items()), ({}, {})))
    differences, layers = broadcast_object_list([[one for one in found if one], layers])
    engine.close()
    accelerator.end_training()
    # `min` keeps the first of equal steps, so a step's own record comes before its checkpoint.
    first = min(differences, key=lambda one: one.step, default=None)
    changed = plan.setting.differences(setting)
    return Replayed(str(plan.run.path), plan.begin, end, setting, exact, layers, checks.compared, first, changed)


class CheckpointChecks:
    """Compares the state with the run's checkpoints between steps; `launcher.training.evaluate_and_save.StepHooks`.

    Attributes:
        compared: the steps whose checkpoints were compared.
        found: the first difference of each step whose checkpoint differs, on every rank.
    """

    saves = False

    def __init__(self, run: RunDirectory, engine: Engine, absolute: float):
        self.run, self.engine, self.absolute = run, engine, absolute
        self.compared: list[int] = []
        self.found: dict[int, TensorDifference] = {}

    def evaluate_if_due(self, step: int, micro_batch: int, progress: RunProgress) -> None:
        """Do nothing: an evaluation changes no state."""

    def save_if_due(self, step: int) -> None:
        """Compare the state with the checkpoint of that step if there is one."""
        if step not in saved_steps(self.run.checkpoints) or step in self.compared:
            return
        saved = _open(self.run, step)
        assert saved is not None
        self.compared.append(step)
        own = differences_to(saved.reader(), self.engine.state(), self.absolute)
        everywhere = gather_object(own) if self.engine.accelerator.num_processes > 1 else own
        if everywhere:
            self.found[step] = first_in_order(everywhere)

    def save(self, step: int) -> None:
        """Compare the last state too."""
        self.save_if_due(step)

    def finish(self) -> None:
        """Do nothing: nothing was written."""


def _is_exact(plan: ReplayPlan, setting: StepSetting, recipe: Recipe) -> bool:
    """Return whether all steps should be equal bit for bit to those of the run."""
    repeatable = setting.device == "CPU" or recipe.engine.deterministic
    return repeatable and all(setting.rounds_as(then) for then in plan.settings.values())


def _open(run: RunDirectory, step: int) -> Checkpoint | None:
    """Return the checkpoint of that step after a check of its files; None for step 0.

    Raises:
        UserError: it is damaged.
    """
    if step == 0:
        return None
    try:
        return open_checkpoint(checkpoint_path(run.checkpoints, step))
    except DamagedCheckpoint as error:
        raise UserError(f"{error}: replay steps after another checkpoint") from None


@contextmanager
def _scratch_metrics() -> Iterator[Metrics]:
    with tempfile.TemporaryDirectory(prefix="bigbatch-replay-") as folder:
        yield Metrics(Path(folder) / "metrics.jsonl")
