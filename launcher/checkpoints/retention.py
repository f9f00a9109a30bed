"""Chooses which checkpoints of a run are kept."""

from dataclasses import dataclass


@dataclass
class Retention:
    """Keeps the newest checkpoints, the one of the best evaluation, and milestones.

    Attributes:
        last: how many of the newest are kept.
        every: number of steps between milestones, which are never deleted; None: no milestones.
        best: step of the best evaluation so far; None: there was none. The training loop changes it.
    """

    last: int
    every: int | None = None
    best: int | None = None

    def kept(self, steps: list[int]) -> set[int]:
        """Return the steps, among those that have a checkpoint, whose checkpoints are kept."""
        newest = sorted(steps)[-self.last :]
        milestones = [step for step in steps if self.every and step % self.every == 0]
        return {*newest, *milestones, *(step for step in steps if step == self.best)}
