"""The loss of a learning-rate range test, and the learning rate that it suggests.

The test is that of Smith, 2017 (arXiv 1506.01186): the learning rate rises from step to step, and the loss falls faster
and faster, until it rises. fastai and Lightning read it in two ways that both stay below that point: the learning rate
where the loss falls fastest, and a tenth of that with the lowest loss. Both were far too low for AdamW with a warm-up
(docs/batch-size.md), so this takes a third of the latter.
"""

import math
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

_DECAY = 0.9  # of the moving average
_DIVERGED = 4.0  # times the lowest loss, as in fastai and Lightning
_BELOW_LOWEST = 3.0  # how much lower than the learning rate with the lowest loss the suggestion is
_HALF_WINDOW = 5  # steps on each side, over which a slope is measured
_SKIPPED = 10  # first steps, at least a tenth of all, in which the average has too few values to be compared
_FEWEST = 20  # steps without which there is no suggestion


@dataclass(frozen=True)
class LrSuggestion:
    """What a curve says about the learning rate.

    Attributes:
        lowest: the learning rate with the lowest smoothed loss.
        steepest: the learning rate below it where the smoothed loss falls fastest.
        is_lowest_inside: whether the loss rises again after `lowest`. Otherwise the test ended too early to see that.
    """

    lowest: float
    steepest: float
    is_lowest_inside: bool

    @property
    def lr(self) -> float:
        """The suggested peak learning rate."""
        return self.lowest / _BELOW_LOWEST


@dataclass(frozen=True)
class LrCurve:
    """The learning rate and the loss of each step, the latter before the step's update."""

    lrs: list[float]
    losses: list[float]

    @cached_property
    def smoothed(self) -> list[float]:
        """The moving average of the losses, corrected for its start at zero as Adam corrects its moments."""
        sums = accumulate(self.losses, lambda mean, loss: _DECAY * mean + (1 - _DECAY) * loss, initial=0.0)
        return [mean / (1 - _DECAY**number) for number, mean in enumerate(sums) if number]

    @property
    def has_diverged(self) -> bool:
        """Whether the smoothed loss is four times the lowest one before."""
        if not self.smoothed:
            return False
        low = min(self.smoothed)
        return self.smoothed[-1] > low + (_DIVERGED - 1) * abs(low)  # a loss of the user's own may be negative

    def suggestion(self) -> LrSuggestion | None:
        """Return what the curve says; None for fewer than 20 steps, or if the loss only rises."""
        if len(self.lrs) < _FEWEST:
            return None
        first = max(_SKIPPED, len(self.lrs) // 10)
        low = min(range(first, len(self.lrs)), key=self.smoothed.__getitem__)
        window = range(first, low - _HALF_WINDOW + 1)
        slopes = {at: self.smoothed[at + _HALF_WINDOW] - self.smoothed[at - _HALF_WINDOW] for at in window}
        steepest = min(slopes, key=slopes.__getitem__, default=None)
        if steepest is None or slopes[steepest] >= 0:
            return None
        return LrSuggestion(self.lrs[low], self.lrs[steepest], low < len(self.lrs) - 1)


def rising_lr(start: float, end: float, step: int, steps: int) -> float:
    """Return the learning rate of step `step`, counted from 0, of a test that takes `steps` from `start` to `end`."""
    return start * math.pow(end / start, step / (steps - 1))
