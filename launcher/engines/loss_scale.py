"""The loss scale of fp16: halved at an overflow, doubled after a long time without one.

The constants and the rule are those of `torch.amp.GradScaler`, which cannot be used with ZeRO: each rank's scaler would
see only that rank's shard of the gradient, so ranks would disagree on whether a step overflowed.
"""

from dataclasses import dataclass

_GROWTH_INTERVAL = 2000  # steps without overflow until the scale is doubled


@dataclass
class LossScale:
    """The scale and its history.

    Attributes:
        value: the factor on the loss.
        good_steps: steps without overflow since `value` changed.
    """

    value: float = 2.0**16
    good_steps: int = 0

    def update(self, step_was_applied: bool) -> None:
        """Adapt the scale after one step."""
        if not step_was_applied:
            self.value, self.good_steps = self.value / 2, 0
            return
        self.good_steps += 1
        if self.good_steps == _GROWTH_INTERVAL:
            self.value, self.good_steps = self.value * 2, 0

    def scalars(self) -> dict[str, float]:
        """Return the scale and its history, to be saved in a checkpoint."""
        return {"loss_scale": self.value, "good_steps": self.good_steps}

    def load(self, scalars: dict[str, float]) -> None:
        """Restore the scale and its history from what `scalars` returned."""
        self.value, self.good_steps = scalars["loss_scale"], int(scalars["good_steps"])
