"""`bigbatch batchsize`: what each batch size costs to the same loss, from a measured noise scale and the plan.

The law is that of McCandlish et al., 2018 (arXiv 1812.06162, section 2): with a well chosen learning rate, the steps to
a loss grow with ``1 + noise scale / batch``.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from rich.console import Console
from rich.table import Table

from launcher.planning.gpus import gpu_count
from launcher.planning.plan import PlanOption, recommend
from launcher.planning.plan_request import PlanRequest, plan_options
from launcher.runs.noise_scale import LATEST, noise_scale, recorded_estimates
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError
from recipes.load import override
from recipes.lr_scaling import batch_overrides, is_linear, rule_lr, show_lr
from recipes.schema import Recipe

_FACTORS = [2.0**power for power in range(-4, 5)]  # of the recipe's batch
_LARGEST_NOISE = 1e12  # images, more than any data set has
_AS_FAST = 1.03  # a smaller batch is recommended if it takes at most this factor more time
_UNCERTAINTY = 4.0  # the factor by which the law's noise scale was too small on digits (docs/batch-size.md)
_PIPED_WIDTH = 160  # columns where the output is not a terminal
_ASSUMPTIONS = (
    "The steps follow the law of McCandlish et al. (2018), with a learning rate that suits each batch. It is a model: "
    "trust it to a factor of two to four, and only near the batch sizes that were trained."
)
_PRECONDITIONED = (
    "Adam-like optimizers usually make use of larger batches than it says (Zhang et al., 2019, arXiv 1907.04164)."
)


@dataclass(frozen=True)
class BatchSizeRow:
    """One batch size.

    Attributes:
        steps: to the loss that the recipe reaches with its own batch.
        lr: the peak learning rate by the rule of the optimizer.
        option: the recommended way to run it on the GPUs.
    """

    batch: int
    steps: float
    lr: float
    option: PlanOption

    @property
    def seconds(self) -> float:
        """The training time."""
        return self.steps * self.option.step_seconds


def noise_scale_of(run: Path) -> float:
    """Return the noise scale of the last hundred steps of a run that have estimates.

    Raises:
        UserError: the run has none.
    """
    found = noise_scale(recorded_estimates(RunDirectory(run).metrics.recent())[-LATEST:])
    if found is None:
        raise UserError(
            f"{run} has no noise scale yet: let it train longer with a cut that measures it, or give --noise-scale"
        )
    return found


def compare_batch_sizes(recipe: Recipe, steps: int, noise: float, request: PlanRequest) -> list[BatchSizeRow]:
    """Return a row for each batch size around the recipe's own that the GPUs can run, the smallest first.

    Args:
        steps: that the recipe takes with its own batch.
        noise: the noise scale in images.

    Raises:
        UserError: none of them fits the GPUs, or the noise scale is impossible.
    """
    if not 0 < noise < _LARGEST_NOISE:
        raise UserError(f"a noise scale of {noise:g} images is impossible: give more than 0, below {_LARGEST_NOISE:g}")
    own, rows, problem = recipe.batch.global_, [], UserError(f"no batch size fits {request.gpus} GPUs: take fewer")
    for batch in (round(own * factor) for factor in _FACTORS):
        if batch < 1:
            continue
        try:
            option = recommend(plan_options(override(recipe, batch_overrides(recipe, batch)), request))
        except UserError as error:  # too small for the GPUs
            problem = error
            continue
        rows.append(BatchSizeRow(batch, needed_steps(steps, own, noise, batch), rule_lr(recipe, batch), option))
    if not rows:
        raise problem
    return rows


def recommended_row(rows: list[BatchSizeRow]) -> BatchSizeRow:
    """Return the smallest batch size that takes at most 3% longer than the fastest."""
    fastest = min(row.seconds for row in rows)
    return next(row for row in rows if row.seconds <= fastest * _AS_FAST)


def needed_steps(steps: float, own: int, noise: float, batch: int) -> float:
    """Return the steps with another batch to the loss that `steps` steps with the batch `own` reach."""
    return steps * (1 + noise / batch) / (1 + noise / own)


def recommended_range(rows: list[BatchSizeRow], steps: int, own: int, noise: float) -> tuple[int, int]:
    """Return the batch sizes to recommend if the noise scale were four times smaller, and four times larger."""

    def recommended(actual: float) -> int:
        return recommended_row([replace(row, steps=needed_steps(steps, own, actual, row.batch)) for row in rows]).batch

    return recommended(noise / _UNCERTAINTY), recommended(noise * _UNCERTAINTY)


def print_batch_sizes(recipe: Recipe, steps: int, noise: float, request: PlanRequest) -> None:
    """Print the table, the recommended row with its reason, and what the prediction assumes."""
    rows = compare_batch_sizes(recipe, steps, noise, request)
    best = recommended_row(rows)
    print(f"{recipe.name} on {gpu_count(request.gpus)} ({request.gpu}); noise scale {noise:,.0f} images")
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("", "batch", "steps", "images", "GPU-hours", "hours", "learning rate"):
        table.add_column(heading, justify="right", no_wrap=True)
    for row in rows:
        hours = row.seconds / 3600
        cells = [f"{row.batch:,}", f"{row.steps:,.0f}", f"{row.steps * row.batch:,.0f}"]
        cells += [f"{hours * request.gpus:,.3g}", f"{hours:,.3g}", show_lr(row.lr)]
        mark = "→" if row is best else "=" if row.batch == recipe.batch.global_ else ""
        table.add_row(mark, *cells)
    Console(width=None if sys.stdout.isatty() else _PIPED_WIDTH).print(table)
    print(f"→ batch {best.batch:,} is the smallest that is about as fast as any on these GPUs; = is the recipe's own")
    print(f"  {' '.join(batch_overrides(recipe, best.batch))}")
    low, high = recommended_range(rows, steps, recipe.batch.global_, noise)
    doubt = "the noise scale is known to a factor of about four"
    print(
        f"  {doubt}: " + (f"the best batch may be anything from {low:,} to {high:,}" if low < high else "it stays best")
    )
    print(_ASSUMPTIONS if is_linear(recipe) else f"{_ASSUMPTIONS} {_PRECONDITIONED}")
