"""The error for a loss that is NaN or infinite."""

from pathlib import Path

from recipes.errors import UserError
from recipes.schema import Recipe


class LossNotFinite(UserError):
    """The loss has become NaN or infinite by updates of the weights."""


def not_finite_error(recipe: Recipe, shards: Path | str, loss: float, step: int, was_updated: bool) -> UserError:
    """Return the error for a loss that is NaN or infinite, with what most likely helps.

    Args:
        shards: the folder or URL of the training's shards.
        was_updated: whether the weights had been updated before the step.
    """
    if was_updated:
        return LossNotFinite(
            f"the loss of step {step} is {loss}, so nothing later is saved: a lower optimizer.lr, a longer "
            f"warm-up or optimizer.clip_grad=1 usually helps"
        )
    checks = [f"whether the images are intact (`bigbatch verify {shards}`)"]
    if recipe.model.weights:
        checks.insert(0, f"whether the values in {recipe.model.weights} are of a usual size")  # NaN is not loaded
    if recipe.engine.precision == "fp16":
        checks.insert(0, "whether engine.precision=bf16 or float32 helps, because fp16 overflows easily")
    return UserError(
        f"the loss of step {step} is {loss} before the first update of the weights, so the learning rate is not "
        f"the cause: check {', and '.join(checks)}"
    )
