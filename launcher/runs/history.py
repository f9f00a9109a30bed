"""The history of a run, from the files of its directory."""

import math
import statistics
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from launcher.runs.metrics import best_accuracy
from launcher.runs.mistakes import read_mistakes
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError


def restarts_among(starts: list[dict], total_steps: int | None) -> list[dict]:
    """Return the starts that resumed a run; one that found it finished changed nothing and does not count.

    Events that a branch shares with its parent are marked `shared`. The parent's starts are not the branch's.
    """
    own = [start for start in starts if not start.get("shared")]
    return [start for start in own[1:] if start["step"] != total_steps]


class History:
    """The events of one run by kind, and quantities computed from them.

    Raises:
        UserError: this is not a run directory, one of its files cannot be read, or no step is finished.
    """

    def __init__(self, path: str | Path):
        run = RunDirectory(path)
        self.recipe, self.path = run.recipe(), run.path
        self.folder = self.path.resolve().name  # after the recipe was found, because `resolve` raises on circular links
        self.metadata = run.metadata()
        self.events = run.metrics.events()
        self.starts = self._of_kind("start")
        self.steps = self._of_kind("step")
        self.evaluations = self._of_kind("evaluation")
        self.mistakes, self.mistakes_elsewhere = read_mistakes(run)
        if not self.steps:
            raise UserError(f"{path} has no finished step to report: let `bigbatch train` do some first")

    @property
    def step(self) -> int:
        """Optimizer steps finished."""
        return self.steps[-1]["step"]

    @property
    def finished(self) -> bool:
        return self.step >= self.metadata.total_steps

    @property
    def restarts(self) -> list[dict]:
        """The starts that resumed the run, as `restarts_among`."""
        return restarts_among(self.starts, self.metadata.total_steps)

    @property
    def has_ema(self) -> bool:
        """Whether EMA weights were evaluated."""
        return bool(self.values("evaluation", "ema_top1"))

    @cached_property
    def seconds(self) -> float:
        """Training time in seconds: from each start to its last event. Pauses and steps lost to a kill do not count."""
        total, began, last = 0.0, None, 0.0
        for event in self.events:
            if event["event"] == "start":
                total += last - began if began is not None else 0.0
                began = event["time"]
            last = event["time"]
        return total + (last - began if began is not None else 0.0)

    @cached_property
    def images_per_second(self) -> float | None:
        """The median throughput over the steps; None if none of them recorded it."""
        speeds = self.values("step", "images_per_second")
        return statistics.median(speeds) if speeds else None

    def epoch(self, event: dict) -> float:
        """Return the epochs finished at an event."""
        return event["step"] / self.metadata.steps_per_epoch

    def curve(self, kind: str, name: str) -> tuple[list[float], list[float]]:
        """Return epochs and values of one quantity, from all events of that kind that have it.

        A loss that is NaN or infinite is left out.
        """
        recorded = [event for event in self._of_kind(kind) if event.get(name) is not None]
        measured = [event for event in recorded if math.isfinite(event[name])]
        return [self.epoch(event) for event in measured], [event[name] for event in measured]

    def values(self, kind: str, name: str) -> list[float]:
        """Return the values of one quantity, from all events of that kind that have it."""
        return self.curve(kind, name)[1]

    def last(self, name: str) -> float | None:
        """Return a quantity at the last evaluation; None if there is none."""
        return self.evaluations[-1].get(name) if self.evaluations else None

    def best(self, weights: Iterable[str] = ("EMA", "raw")) -> tuple[float, float] | None:
        """Return the highest top-1 of these weights over all evaluations, and the epoch at which it was first reached.

        Returns None without an evaluation.
        """
        best = best_accuracy(self.evaluations, weights)
        return (best.top1, best.step / self.metadata.steps_per_epoch) if best else None

    def _of_kind(self, kind: str) -> list[dict]:
        return [event for event in self.events if event["event"] == kind]
