"""The factor that keeps fp16 gradients from vanishing: halved when they overflow, doubled after a long time without.

The numbers and the rule are those of `torch.amp.GradScaler`, which cannot serve here: of gradients that are shared out it
would see one process's part, so processes would not agree on a step that overflows.
"""

from dataclasses import dataclass

_GROWTH_INTERVAL = 2000  # steps without overflow


@dataclass
class LossScale:
    """`value` is the factor, `good_steps` the steps since it was changed."""

    value: float = 2.0**16
    good_steps: int = 0

    def update(self, step_was_applied: bool) -> None:
        """Take account of one step."""
        if not step_was_applied:
            self.value, self.good_steps = self.value / 2, 0
            return
        self.good_steps += 1
        if self.good_steps == _GROWTH_INTERVAL:
            self.value, self.good_steps = self.value * 2, 0

    def scalars(self) -> dict[str, float]:
        """What a checkpoint keeps of it."""
        return {"loss_scale": self.value, "good_steps": self.good_steps}

    def load(self, numbers: dict[str, float]) -> None:
        """Go on from what `numbers` returned."""
        self.value, self.good_steps = numbers["loss_scale"], int(numbers["good_steps"])
