"""Prints what `bigbatch compare` found."""

from collections.abc import Sequence

from rich.console import Console
from rich.table import Table
from rich.text import Text

from launcher.runs.comparison import ComparedRun, SeedGroup
from launcher.runs.intervals import with_interval
from launcher.runs.significance import PairedDifference, SeedDifference


def print_comparison(compared: Sequence[ComparedRun]) -> None:
    """Print the accuracy of each run, and its difference from the first one."""
    images = compared[0].predictions
    table = Table("run", "weights", box=None, title_justify="left")
    table.title = f"{len(images.labels):,} images of split {images.split} of {images.dataset}, 95 % intervals"
    for heading in ("top-1", "difference", "only first right", "only this right", "p (McNemar)"):
        table.add_column(heading, justify="right")
    for one in compared:
        kept = one.predictions
        weights = kept.weights if kept.step is None else f"{kept.weights}, step {kept.step}"
        top1 = with_interval(one.top1, len(kept.labels))
        table.add_row(Text(one.run), weights, top1, *_paired_cells(one.difference))
    _print(table)


def print_seed_groups(groups: Sequence[SeedGroup]) -> None:
    """Print mean and standard error of each group of runs, and the difference of its mean from the first group's."""
    for number, group in enumerate(groups, 1):
        spread = group.spread
        error = "" if spread.standard_error is None else f" ± {100 * spread.standard_error:.2f} (standard error)"
        print(f"group {number}: {spread.mean:.2%}{error} over {_count(spread.runs)}: {', '.join(group.runs)}")
        if number > 1:
            print(f"  {_seed_sentence(group.difference)}")


def _seed_sentence(difference: SeedDifference | None) -> str:
    if difference is None:
        return "no difference from group 1 can be tested: it takes two runs of each group that are not all equal"
    found = (
        f"difference from group 1: {_points(difference.difference)} ± {100 * difference.standard_error:.2f}, "
        f"95 % interval {_interval(difference.interval)}, p = {difference.p_value:.2g} (Welch)"
    )
    if difference.seeds_needed is None:
        return f"{found}; no practical number of seeds would show a difference of this size"
    return f"{found}; {difference.seeds_needed} runs of each group show a difference of this size in 80 % of cases"


def _paired_cells(difference: PairedDifference | None) -> list[str]:
    if difference is None:
        return [""] * 4
    shown = f"{_points(difference.difference)} ({_interval(difference.interval)})"
    return [shown, f"{difference.only_first:,}", f"{difference.only_second:,}", f"{difference.p_value:.2g}"]


def _points(difference: float) -> str:
    return f"{100 * difference:+.2f}"


def _interval(bounds: tuple[float, float]) -> str:
    return f"{_points(bounds[0])} to {_points(bounds[1])}"


def _count(runs: int) -> str:
    return "1 run" if runs == 1 else f"{runs} runs"


def _print(table: Table) -> None:
    """Print a table at its full width where the output is no terminal, so that no line is broken in a file."""
    console = Console()
    if not console.is_terminal:
        console = Console(width=200)
    console.print(table)
