"""Which checkpoints of a run stay."""

from dataclasses import dataclass


@dataclass
class Retention:
    """The last ones, the one of the best evaluation so far, and one at every so many steps.

    Attributes:
        last: how many of the newest stay.
        every: steps between those that stay for good; None: none do.
        best: step of the best evaluation so far; None: there was none.
    """

    last: int
    every: int | None = None
    best: int | None = None

    def kept(self, steps: list[int]) -> set[int]:
        """Of the checkpoints after these steps, the steps of those that stay."""
        newest = sorted(steps)[-self.last :]
        milestones = [step for step in steps if self.every and step % self.every == 0]
        return {*newest, *milestones, *(step for step in steps if step == self.best)}
