"""`bigbatch diff`: what differs between two runs, and where their trajectories part."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from launcher.checkpoints.checkpoint import Checkpoint, DamagedCheckpoint, open_checkpoint, saved_steps
from launcher.checkpoints.state_difference import TensorDifference, checkpoint_differences
from launcher.runs.recipe_differences import recipe_differences
from launcher.runs.run_directory import RunDirectory
from launcher.runs.step_layers import LayerDifference, common_layers, first_difference, rounding_of
from launcher.runs.step_setting import StepSetting, settings_of
from recipes.errors import UserError


@dataclass(frozen=True)
class RunDifference:
    """How two runs differ.

    Attributes:
        runs: their directories.
        recipe: keys of the recipe with both values; `engine`, `run` and the path of the data do not change the curve.
        data: facts about the shards with both values.
        setting: facts about cut, machine, libraries and code with both values, at the first step that diverges, or else
            at the last common one.
        steps: number of steps that both have recorded.
        layers: the parts of a step that both have recorded; version 0.1.0 recorded few.
        rounding: whether both were cut or computed in different ways, so that differences in rounding do not count.
        first: the first step, and the first part of it, that differs; None if all common steps are equal.
        after: the step of the last checkpoint before `first` that both runs have with equal weights; None if they have
            none. 0: they diverge in the first step.
    """

    runs: tuple[str, str]
    recipe: list[tuple[str, Any, Any]]
    data: list[tuple[str, Any, Any]]
    setting: list[tuple[str, Any, Any]]
    steps: int
    layers: list[str]
    rounding: bool
    first: LayerDifference | None
    after: int | None

    def to_dict(self) -> dict[str, Any]:
        """Return it as `diff --json` prints it."""
        return asdict(self)

    @property
    def may_be_the_update(self) -> bool:
        """Whether the cause may lie in the update of the step before, which no checkpoint of both runs shows."""
        return self.first is not None and self.first.layer == "forward (loss)" and self.after != self.first.step - 1


def compare_trajectories(one: RunDirectory, other: RunDirectory) -> RunDifference:
    """Return what differs between two runs, and the first common step at which they diverge.

    Raises:
        UserError: one of them is no run directory, or they have no step in common.
    """
    recipes = [run.recipe() for run in (one, other)]
    metadata = [run.metadata() for run in (one, other)]
    events = [run.metrics.events() for run in (one, other)]
    first, second = ({event["step"]: event for event in found if event["event"] == "step"} for found in events)
    common = sorted(first.keys() & second.keys())
    if not common:
        raise UserError(f"{one.path} and {other.path} have no step in common: let both train first")
    settings = [settings_of(found) for found in events]
    rounding = any(
        not settings[0][step].rounds_as(settings[1][step])
        for step in common
        if all(step in found for found in settings)
    )
    loss_rounding, weight_rounding = rounding_of(_precision(settings[0])) if rounding else (0.0, 0.0)
    states = _CommonCheckpoints(one, other, weight_rounding)
    found = _first(common, lambda step: first_difference(first[step], second[step], loss_rounding), states)
    shown = found.step if found else common[-1]
    facts = [{"name": run.dataset.name, "digest": run.dataset.digest} for run in metadata]
    return RunDifference(
        (str(one.path), str(other.path)),
        [(key, *values) for key, values in recipe_differences(recipes)],
        [(name, facts[0][name], facts[1][name]) for name in facts[0] if facts[0][name] != facts[1][name]],
        _setting_differences(settings, shown),
        len(common),
        common_layers(first[common[-1]], second[common[-1]]),
        rounding,
        found,
        0 if found and found.step == 1 else states.last_equal,
    )


def _first(
    common: list[int], difference: Callable[[int], LayerDifference | None], states: "_CommonCheckpoints"
) -> LayerDifference | None:
    for step in common:
        if found := difference(step) or states.difference(step):
            return found
    return None


class _CommonCheckpoints:
    """Compares the checkpoints that both runs have, in order of their steps."""

    def __init__(self, one: RunDirectory, other: RunDirectory, absolute: float):
        ours, theirs = saved_steps(one.checkpoints), saved_steps(other.checkpoints)
        self.paths = {step: (ours[step], theirs[step]) for step in ours.keys() & theirs.keys()}
        self.absolute = absolute
        self.last_equal: int | None = None

    def difference(self, step: int) -> LayerDifference | None:
        """Return the difference of the two checkpoints of that step; None if they agree or one of them is missing."""
        if step not in self.paths:
            return None
        try:
            one, other = (open_checkpoint(path) for path in self.paths[step])
        except DamagedCheckpoint:  # a training may have removed it just now
            return None
        found = None if _same_files(one, other) else self._first_tensor(one, other)
        if found is None:
            self.last_equal = step
            return None
        return LayerDifference(step, "update (weights)", None, asdict(found))

    def _first_tensor(self, one: Checkpoint, other: Checkpoint) -> TensorDifference | None:
        return next(checkpoint_differences(one.reader(), other.reader(), self.absolute), None)


def _same_files(one: Checkpoint, other: Checkpoint) -> bool:
    """Return whether the checkpoints are hard links to the same files, as those of a branch and its parent are."""
    return one.files == other.files and all(Path.samefile(one.path / name, other.path / name) for name in one.files)


def _precision(settings: dict[int, StepSetting]) -> str:
    return next((setting.precision for setting in settings.values()), "float32")


def _setting_differences(settings: list[dict[int, StepSetting]], step: int) -> list[tuple[str, Any, Any]]:
    one, other = (found.get(step) for found in settings)
    return one.differences(other) if one and other else []
