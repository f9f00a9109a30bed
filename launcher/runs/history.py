"""What happened in a run so far, put together from its directory."""

import json
import statistics
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path

from launcher.runs.metrics import best_accuracy
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError

_CONFUSIONS = 20  # shown where there are too many classes for a matrix


def restarts_among(starts: list[dict], total_steps: int | None) -> list[dict]:
    """The starts that went on with a run; one that found it finished changed nothing."""
    return [start for start in starts[1:] if start["step"] != total_steps]


class History:
    """The events of one run by kind, and what follows from them.

    Raises:
        UserError: this is not a run directory, or no step is finished.
    """

    def __init__(self, path: Path):
        run = RunDirectory(path)
        self.folder = path.resolve().name
        self.recipe = run.recipe()
        self.facts = run.facts()
        self.events = run.metrics.events()
        self.starts = self._of_kind("start")
        self.steps = self._of_kind("step")
        self.evaluations = self._of_kind("evaluation")
        self.mistakes = _read_json(run.mistakes_file)
        if not self.steps:
            raise UserError(f"{path} has no finished step to report: let `bigbatch train` do some first")

    @property
    def step(self) -> int:
        """Optimizer steps finished."""
        return self.steps[-1]["step"]

    @property
    def finished(self) -> bool:
        return self.step >= self.facts["total_steps"]

    @property
    def restarts(self) -> list[dict]:
        """As `restarts_among`."""
        return restarts_among(self.starts, self.facts["total_steps"])

    @property
    def averaged(self) -> bool:
        """Whether averaged weights (EMA) were evaluated."""
        return bool(self.values("evaluation", "ema_top1"))

    @cached_property
    def seconds(self) -> float:
        """Time from each start to its last event that was kept; neither pauses nor steps lost to a kill count."""
        total, began, last = 0.0, None, None
        for event in self.events:
            if event["event"] == "start":
                total += last - began if began else 0.0
                began = event["time"]
            last = event["time"]
        return total + (last - began if began else 0.0)

    @cached_property
    def images_per_second(self) -> float:
        """Median over the steps."""
        return statistics.median(event["images_per_second"] for event in self.steps)

    def epoch(self, event: dict) -> float:
        """Epochs finished at an event."""
        return event["step"] / self.facts["steps_per_epoch"]

    def curve(self, kind: str, name: str) -> tuple[list[float], list[float]]:
        """Epochs and values of one quantity, where it was measured."""
        measured = [event for event in self._of_kind(kind) if event.get(name) is not None]
        return [self.epoch(event) for event in measured], [event[name] for event in measured]

    def values(self, kind: str, name: str) -> list[float]:
        return self.curve(kind, name)[1]

    def last(self, name: str) -> float | None:
        """A quantity at the last evaluation."""
        return self.evaluations[-1].get(name) if self.evaluations else None

    def best(self, weights: Iterable[str] = ("EMA", "raw")) -> tuple[float, float] | None:
        """Return the highest top-1 of these weights over all evaluations, and the epochs finished when it was first reached."""
        best = best_accuracy(self.evaluations, weights)
        return best and (best.top1, best.step / self.facts["steps_per_epoch"])

    @cached_property
    def confusion(self) -> list[list[int]]:
        """How many images of each class (rows) were taken for each (columns), at the last `bigbatch evaluate`."""
        counts = [[0] * len(self.mistakes["classes"]) for _ in self.mistakes["classes"]]
        for label, guess, count in self.mistakes["confusion"]:
            counts[label][guess] = count
        return counts

    @property
    def confusions(self) -> list[tuple[int, int, int]]:
        """The most frequent mistakes: class, what it was taken for, how often."""
        wrong = [tuple(entry) for entry in self.mistakes["confusion"] if entry[0] != entry[1]]
        return sorted(wrong, key=lambda entry: -entry[2])[:_CONFUSIONS]

    def _of_kind(self, kind: str) -> list[dict]:
        return [event for event in self.events if event["event"] == kind]


def _read_json(path: Path) -> dict | None:
    """The contents of a file that may not be there."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None
