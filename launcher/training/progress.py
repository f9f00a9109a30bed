"""Shows a run's progress on stderr: a live bar in a terminal, plain lines elsewhere."""

import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

_PLAIN_EVERY = 10.0  # seconds between plain lines, so that the log file of a long run stays readable


class RunProgress:
    """Shows optimizer steps: loss, learning rate, images per second, and the share of time spent waiting for data."""

    def __init__(self, total_steps: int, step: int, visible: bool):
        self.console = Console(stderr=True, quiet=not visible, highlight=False, soft_wrap=True)
        self.live = self.console.is_terminal and visible
        self.total_steps = total_steps
        self._started, self._start_step, self._last_line = time.monotonic(), step, 0.0
        self._bar = Progress(
            TextColumn("epoch {task.fields[epoch]:.2f}"),
            BarColumn(bar_width=None),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.live,
        )
        self._task = self._bar.add_task("steps", total=total_steps, completed=step, epoch=0.0, numbers="")

    def __enter__(self) -> "RunProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def step(self, step: int, epoch: float, loss: float, lr: float, images_per_second: float, data_wait: float) -> None:
        """Show the state after `step` finished steps; `data_wait` is a fraction of the step's time."""
        numbers = f"loss {loss:.4f}  lr {lr:.2e}  {images_per_second:,.0f} images/s  data wait {data_wait:.0%}"
        self._bar.update(self._task, completed=step, epoch=epoch, numbers=numbers)
        now = time.monotonic()
        if not self.live and (now - self._last_line >= _PLAIN_EVERY or step == self.total_steps):
            self._last_line = now
            remaining = (now - self._started) / (step - self._start_step) * (self.total_steps - step)
            self.say(f"step {step}/{self.total_steps}  epoch {epoch:.2f}  {numbers}  {_duration(remaining)} left")

    def say(self, line: str) -> None:
        """Print one line, above the bar if there is one."""
        self.console.print(line, markup=False)


def _duration(seconds: float) -> str:
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"
