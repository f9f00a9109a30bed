"""Steps per epoch, learning rate and weight decay of every optimizer step, as pure functions of the step."""

import math

from recipes.errors import UserError
from recipes.lr_scaling import enough_epochs, peak_lr, smaller_batch
from recipes.schema import Recipe

# With fewer steps the schedule, the EMA and AdamW's moments have hardly any effect. The demo's 154 steps are enough.
_FEW_STEPS = 150
_FEW_HUNDRED = 1000  # images below which fine-tuning has a recipe of its own


class StepSchedule:
    """The optimizer steps that a recipe takes over `train_images` images, and the learning rate of each.

    An epoch is ``floor(train_images / global batch)`` steps, as in ConvNeXt's code. Every epoch has another order, so
    the images left out at its end differ too.

    Raises:
        UserError: there are fewer images than one global batch.
    """

    def __init__(self, recipe: Recipe, train_images: int):
        self.recipe = recipe
        self.train_images = train_images
        self.peak_lr = peak_lr(recipe)
        self.steps_per_epoch = train_images // recipe.batch.global_
        if self.steps_per_epoch == 0:
            raise UserError(
                f"{train_images} training images do not fill one global batch of {recipe.batch.global_}: "
                f"{_advice_for_few(recipe, train_images)}"
            )
        self.total_steps = recipe.schedule.epochs * self.steps_per_epoch
        self.warmup_steps = recipe.schedule.warmup_epochs * self.steps_per_epoch

    def epoch(self, step: int) -> int:
        """Return the epoch, counted from 0, of optimizer step `step`, counted from 0."""
        return step // self.steps_per_epoch

    def lr(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0.

        It rises linearly from exactly 0 to the peak during warm-up, and then follows the schedule's shape. The last
        step of the warm-up and the first step after it both have the peak rate, as in ConvNeXt's code.
        """
        peak, schedule = self.peak_lr, self.recipe.schedule
        if step < self.warmup_steps:
            return peak * step / max(1, self.warmup_steps - 1)
        if schedule.shape == "step":
            return peak * 0.1 ** (self.epoch(step) // schedule.step_epochs)
        if schedule.shape == "constant":
            return peak
        if schedule.shape == "wsd":
            decay = schedule.last_epochs * self.steps_per_epoch
            remaining = min(1.0, (self.total_steps - step) / decay)
            return schedule.min_lr + (peak - schedule.min_lr) * remaining
        progress = (step - self.warmup_steps) / (self.total_steps - self.warmup_steps)
        if schedule.shape == "polynomial":
            return schedule.min_lr + (peak - schedule.min_lr) * math.pow(1 - progress, schedule.power)
        return schedule.min_lr + 0.5 * (peak - schedule.min_lr) * (1 + math.cos(math.pi * progress))

    def weight_decay(self, step: int) -> float | None:
        """Return the weight decay of step `step`, counted from 0; None if it never changes.

        It follows half a cosine over all steps, without warm-up, as ConvNeXt's code does for `weight_decay_end`.
        """
        start, end = self.recipe.optimizer.weight_decay, self.recipe.optimizer.weight_decay_end
        if end is None:
            return None
        return end + 0.5 * (start - end) * (1 + math.cos(math.pi * step / self.total_steps))

    def warnings(self) -> list[str]:
        """Return a sentence for each setting that does not suit this number of images, with a better value."""
        found = []
        decay = self.recipe.ema.decay
        if decay is not None and not self.recipe.ema.warmup and 1 / (1 - decay) > self.total_steps:
            found.append(
                f"the EMA averages over {math.ceil(1 / (1 - decay) - 1e-6):,} steps "
                f"but the run has {self.total_steps:,}: "
                f"it will lag behind the weights; try ema.decay={1 - 5 / max(self.total_steps, 10):.4g}"
            )
        if self.total_steps < _FEW_STEPS:
            epochs = enough_epochs(self.steps_per_epoch)
            advice = f"schedule.epochs={epochs} gives {epochs * self.steps_per_epoch:,}"
            if smaller := smaller_batch(self.recipe, self.train_images):
                batch, overrides = smaller
                steps = self.train_images // batch * self.recipe.schedule.epochs
                advice = f"{overrides} gives {steps:,}, or {advice}"
            found.append(f"the run has only {self.total_steps:,} optimizer steps: {advice}")
        if 2 * self.warmup_steps > self.total_steps:
            found.append(
                f"the warm-up takes {self.recipe.schedule.warmup_epochs} of {self.recipe.schedule.epochs} epochs, "
                f"so most of the run has too low a learning rate: "
                f"try schedule.warmup_epochs={self.recipe.schedule.epochs // 10}"
            )
        dropped = self.train_images % self.recipe.batch.global_
        if dropped > 0.2 * self.train_images:
            found.append(
                f"every epoch leaves out {dropped:,} of {self.train_images:,} images, too few for another batch: "
                f"try {self._fuller_batch()}"
            )
        if held_out := self._held_out():
            found.append(held_out)
        return found

    def _held_out(self) -> str | None:
        """Return a warning if a part of the published training images seems to be held out, so that steps are fewer."""
        published = self.recipe.data.train_images or 0
        steps = published // self.recipe.batch.global_
        if not published / 2 <= self.train_images < published or steps == self.steps_per_epoch:
            return None
        return (
            f"an epoch has {self.steps_per_epoch:,} steps, where the recipe counts on {steps:,}: the shards have "
            f"{self.train_images:,} training images instead of {published:,}. If {published - self.train_images:,} "
            f"were held out for validation, `bigbatch shard --val-fraction 0` keeps them"
        )

    def _fuller_batch(self) -> str:
        """Return overrides for the largest batch that gives an epoch one more step, in whole slices if possible."""
        images, slices = self.train_images // (self.steps_per_epoch + 1), self.recipe.batch.slices
        if images >= slices:
            return f"batch.global={images // slices * slices}"
        return f"batch.global={images} batch.slices=1"


def _advice_for_few(recipe: Recipe, images: int) -> str:
    """Return what to do where the images do not fill one batch."""
    smaller = smaller_batch(recipe, images)
    advice = f"use {smaller[1]}" if smaller else f"use batch.global={images} batch.slices=1"
    if recipe.model.weights is not None and images < _FEW_HUNDRED:
        return f"{advice}, or train finetune_small, a recipe for a few hundred images"
    return advice
