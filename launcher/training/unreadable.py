"""Counts and names the images that could not be read, over all ranks, and ends the run if they are too many."""

from pathlib import Path

from accelerate.utils import gather_object

from launcher.training.progress import RunProgress
from recipes.errors import UserError
from recipes.schema import Recipe

_NAMED_PER_RANK = 20  # a broken disk must not fill the log; further ones are only counted
_COUNTED_OVER = 1000  # images; with fewer, a single unreadable one would exceed a share of one percent and end the run


class UnreadableImages:
    """Counts unreadable images, each of which `data.batches` has replaced by another one.

    Attributes:
        replaced: the number of unreadable images on all ranks since this start.
    """

    def __init__(self, recipe: Recipe, shards_root: Path | str):
        self.recipe = recipe
        self.shards_root = shards_root
        self.replaced = 0
        self._seen = 0
        self._names: list[str] = []

    def add_step(self, names: list[str], on_all_ranks: int, progress: RunProgress) -> None:
        """Count one step's unreadable images. All ranks call this after every step.

        Args:
            names: those of this rank, each with the reason.
            on_all_ranks: the number of unreadable images of this step on all ranks together.
            progress: shows the names.

        Raises:
            UserError: on every rank, if they are more than the share that `run.unreadable` allows.
        """
        new = [name for name in names if name not in self._names][: max(0, _NAMED_PER_RANK - len(self._names))]
        for name in new:
            progress.say(f"unreadable image, replaced by another one: {name}")
        self._names += new
        self.replaced += on_all_ranks
        self._seen += self.recipe.batch.global_
        allowed = self.recipe.run.unreadable
        if self.replaced > allowed * max(self._seen, _COUNTED_OVER):
            named = "; ".join(gather_object(self._names)[:_NAMED_PER_RANK])
            raise UserError(
                f"{self.replaced:,} of {self._seen:,} images could not be read, more than the share of "
                f"run.unreadable={allowed:g}: run `bigbatch verify {self.shards_root}`, or allow more; {named}"
            )
