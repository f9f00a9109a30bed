"""How the learning rate follows the batch size.

For Adam-like optimizers, LAMB and Lion it grows with the square root of the batch (Malladi et al., 2022; You et al.,
2019), for SGD and LARS linearly (Goyal et al., 2017).
"""

from recipes.schema import Recipe

_LINEAR = ("sgd", "momentum", "lars", "larc", "nlars", "nlarc")  # how the names of such optimizers begin in timm
_ENOUGH_STEPS = 500
_SMALLEST_BATCH = 16


def is_linear(recipe: Recipe) -> bool:
    """Return whether the linear rule suits the recipe's optimizer, and not the square-root rule."""
    return recipe.optimizer.name.removeprefix("timm:").startswith(_LINEAR)


def rule_of(recipe: Recipe) -> str:
    """Return the rule that suits the recipe's optimizer, e.g. "square-root rule of adamw"."""
    return f"{'linear' if is_linear(recipe) else 'square-root'} rule of {recipe.optimizer.name}"


def scaled_lr(recipe: Recipe, lr: float, batch: int, new_batch: int) -> float:
    """Return the learning rate for `new_batch` if `lr` suits `batch`, by the rule of the recipe's optimizer."""
    ratio = new_batch / batch
    return lr * ratio if is_linear(recipe) else lr * ratio**0.5


def peak_lr(recipe: Recipe) -> float:
    """Return the peak learning rate: `optimizer.lr`, scaled to the batch if `optimizer.lr_at_batch` says so."""
    return recipe.optimizer.lr if recipe.optimizer.lr_at_batch is None else rule_lr(recipe, recipe.batch.global_)


def rule_lr(recipe: Recipe, batch: int) -> float:
    """Return the learning rate for a batch size by the rule of the optimizer, from what the recipe was written for."""
    return scaled_lr(recipe, recipe.optimizer.lr, recipe.lr_batch, batch)


def lr_key_for(recipe: Recipe, peak: float) -> float:
    """Return the `optimizer.lr` that gives the recipe this peak, also where `optimizer.lr_at_batch` scales it."""
    at_batch = recipe.optimizer.lr_at_batch
    return peak if at_batch is None else scaled_lr(recipe, peak, recipe.batch.global_, at_batch)


def lr_note(recipe: Recipe) -> str | None:
    """Return a sentence about the learning rate of a recipe whose batch was changed; None for any other recipe."""
    optimizer, batch, written_for = recipe.optimizer, recipe.batch.global_, recipe.lr_batch
    if written_for == batch:
        return None
    if optimizer.lr_at_batch is not None:
        change = f"{show_lr(optimizer.lr)} → {show_lr(peak_lr(recipe))} by the {rule_of(recipe)}"
        return f"batch {written_for} → {batch}: learning rate {change}"
    root, linear = (show_lr(optimizer.lr * (batch / written_for) ** power) for power in (0.5, 1))
    scaling = f"optimizer.lr_at_batch={written_for} scales it by the {rule_of(recipe)}"
    stays = f"the learning rate stays {show_lr(optimizer.lr)}; square-root rule {root}, linear {linear}"
    return f"batch {written_for} → {batch}: {stays} ({scaling})"


def show_lr(lr: float) -> str:
    """Return a learning rate as people write it, e.g. 4e-3."""
    mantissa, exponent = f"{lr:.2e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"


def smaller_batch(recipe: Recipe, images: int) -> tuple[int, str] | None:
    """Return a smaller batch for so few images that the run has hundreds of steps, if it can have them.

    Returns the batch, and the overrides that set it with its learning rate; None if no smaller batch is sensible.
    """
    sizes = [1 << power for power in range(20) if _SMALLEST_BATCH <= 1 << power < recipe.batch.global_]
    sizes = [size for size in sizes if size <= images]
    if not sizes:
        return None
    enough = [size for size in sizes if images // size * recipe.schedule.epochs >= _ENOUGH_STEPS]
    batch = max(enough, default=min(sizes))
    return batch, " ".join(batch_overrides(recipe, batch))


def batch_overrides(recipe: Recipe, batch: int) -> list[str]:
    """Return the overrides that set another global batch: in slices of about the same size, with its learning rate."""
    slices = max(1, batch // recipe.batch.slice_size)
    found = [f"batch.global={batch}", f"batch.slices={slices if batch % slices == 0 else 1}"]
    if recipe.batch.statistics and batch % recipe.batch.statistics:
        found.append(f"batch.statistics={batch}")
    if recipe.optimizer.lr_at_batch is None:  # otherwise the learning rate follows by itself
        found.append(f"optimizer.lr={show_lr(rule_lr(recipe, batch))}")
    return found


def enough_epochs(steps_per_epoch: int) -> int:
    """Return the epochs that give a run hundreds of steps."""
    return -(-_ENOUGH_STEPS // steps_per_epoch)
