"""Ctrl-C and SIGTERM: the run stops after the current step and saves."""

import signal
from types import FrameType

from launcher.training.progress import RunProgress


class StopRequest:
    """Makes Ctrl-C and SIGTERM request a stop after the current step; a second Ctrl-C stops at once.

    Args:
        progress: shows what the user is told.
        saves: whether the state is saved after the current step.

    Attributes:
        wanted: whether this process was asked to stop.
        agreed: whether all ranks know that one of them was asked to stop. The training loop sets this, and all ranks
            stop after the same step.
    """

    def __init__(self, progress: RunProgress, saves: bool):
        self.progress, self.saves = progress, saves
        self.wanted = False
        self.agreed = False

    def __enter__(self) -> "StopRequest":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame: FrameType | None) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True
        then = ", then saving" if self.saves else ""
        self.progress.say(f"stopping after this step{then}; Ctrl-C again stops at once")
