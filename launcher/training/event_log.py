"""Records a run's events: one line each in ``metrics.jsonl``, and curves for the trackers."""

from typing import Any

from accelerate import Accelerator

from launcher.runs.metrics import Metrics
from launcher.training.trackers import Trackers


class EventLog:
    """Writes events from the main process; on the other ranks it does nothing."""

    def __init__(
        self, metrics: Metrics, accelerator: Accelerator, steps_per_epoch: int, trackers: Trackers | None = None
    ):
        self.metrics = metrics
        self.accelerator = accelerator
        self.steps_per_epoch = steps_per_epoch
        self.trackers = trackers

    def write(self, event: str, step: int, **values: Any) -> None:
        """Record an event after `step` finished steps. Values that are no numbers go to ``metrics.jsonl`` only."""
        if not self.accelerator.is_main_process:
            return
        self.metrics.append(event, step, epoch=round(step / self.steps_per_epoch, 4), **values)
        if self.trackers:
            numbers = {f"{event}/{name}": value for name, value in values.items() if isinstance(value, int | float)}
            self.trackers.log(numbers, step)
