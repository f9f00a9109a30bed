"""Which steps a replay recomputes, from which checkpoint, and how the run computed them."""

from dataclasses import dataclass

from launcher.checkpoints.checkpoint import saved_steps
from launcher.cut import cut_for_model, parse_cut
from launcher.planning.auto_engine import EngineChoice
from launcher.runs.run_directory import RunDirectory
from launcher.runs.step_setting import StepSetting, settings_of
from recipes.errors import UserError
from recipes.schema import Recipe


@dataclass(frozen=True)
class ReplayPlan:
    """Which steps to recompute, and how the run computed them.

    Attributes:
        run: the run.
        recipe: of the run, with the engine of its last start.
        begin: finished steps of the checkpoint to begin from; 0: begin as the run did.
        end: the last step to recompute.
        recorded: the events of these steps by step.
        settings: how each of them was computed.
    """

    run: RunDirectory
    recipe: Recipe
    begin: int
    end: int
    recorded: dict[int, dict]
    settings: dict[int, StepSetting]

    @property
    def setting(self) -> StepSetting:
        """How the first of the steps was computed."""
        return self.settings[self.begin + 1]

    @property
    def processes_then(self) -> int:
        """The number of processes with which the first of the steps was computed."""
        return self._cut_then[0]

    @property
    def _cut_then(self) -> tuple[int, int]:
        found = parse_cut(self.setting.cut)
        if found is None:
            raise UserError(f"{self.run.metrics.path} does not record the cut of step {self.begin + 1}: use --cut here")
        return found

    def engine_then(self, processes: int, has_batch_norm: bool) -> EngineChoice:
        """Return the engine and the cut with which the run computed the first of the steps.

        Raises:
            UserError: another number of processes was started.
        """
        then, micro_batch = self._cut_then
        if processes != then:
            raise UserError(
                f"step {self.begin + 1} was computed by {then} processes and {processes} were started: start {then}, "
                f"or use --cut here"
            )
        return EngineChoice(self.recipe, cut_for_model(self.recipe, then, micro_batch, has_batch_norm), "")


def plan_replay(run: RunDirectory, step: int, steps: int, data: str | None = None) -> ReplayPlan:
    """Return what has to be recomputed for `steps` steps from `step` on, from the nearest checkpoint before them.

    Args:
        data: where the shards of the run are now; None: where the recipe says.

    Raises:
        UserError: the steps are not recorded, or belong to the parent of a branch, or the recipe is not the run's.
    """
    recipe, events = run.recipe(), run.metrics.events()
    _check_recipe_is_unchanged(run, recipe)
    if data:
        recipe = recipe.variant(data={"path": data})
    recorded = {event["step"]: event for event in events if event["event"] == "step"}
    last = max(recorded, default=0)
    if not recorded:
        raise UserError(f"{run.path} has recorded no steps yet: let it train first")
    if not 1 <= step <= last:
        raise UserError(f"{run.path} has no record of step {step}: give one from 1 to {last}")
    if recipe.branch and step <= recipe.branch.step:
        raise UserError(
            f"step {step} of {run.path} is one of its parent, which it left at step {recipe.branch.step}: replay "
            f"{recipe.branch.run}"
        )
    end = min(step + steps - 1, last)
    begin = max((saved for saved in saved_steps(run.checkpoints) if saved < step), default=0)
    if recipe.branch and not begin:
        raise UserError(f"{run.path} has no checkpoint before step {step}: replay a later step")
    wanted = range(begin + 1, end + 1)
    if missing := [number for number in wanted if number not in recorded]:
        raise UserError(f"{run.path} has no record of step {missing[0]}, from which step {step} follows")
    settings = settings_of(events)
    if unknown := [number for number in wanted if number not in settings]:
        raise UserError(f"{run.path} does not say how step {unknown[0]} was computed: its start is not recorded")
    return ReplayPlan(
        run,
        recipe,
        begin,
        end,
        {number: recorded[number] for number in wanted},
        {number: settings[number] for number in wanted},
    )


def _check_recipe_is_unchanged(run: RunDirectory, recipe: Recipe) -> None:
    """Refuse a recipe that describes a trajectory other than that of the run.

    Raises:
        UserError: ``recipe.yaml`` was edited, or ``run.json`` is missing or damaged.
    """
    # Version 0.1.0 hashed the path of a weights file into the identity, and the file may have been moved.
    path_may_differ = recipe.model.weights_path is not None
    if not (recipe.has_identity(run.metadata().identity) or path_may_differ):
        raise UserError(
            f"{run.recipe_file} was changed since the run trained, so its steps cannot be repeated: restore it"
        )
