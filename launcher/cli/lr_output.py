"""Prints what `bigbatch lr` found."""

from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table

from recipes.lr_scaling import lr_key_for, peak_lr, show_lr

if TYPE_CHECKING:
    from launcher.experiments.lr_range_test import LrRangeTest

_ROWS = 20


def print_lr_test(test: "LrRangeTest") -> None:
    """Print about twenty rows of the test, and what it says about the learning rate."""
    curve = test.curve
    found = curve.suggestion()
    notes = {curve.lrs.index(found.lowest): "lowest", curve.lrs.index(found.steepest): "falls fastest"} if found else {}
    last = len(curve.lrs) - 1
    shown = sorted({*range(0, last + 1, max(1, last // _ROWS)), last, *notes} - {-1})
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("step", "learning rate", "loss", "moving average"):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for at in shown:
        values = (f"{curve.losses[at]:.4g}", f"{curve.smoothed[at]:.4g}")
        table.add_row(str(at + 1), show_lr(curve.lrs[at]), *values, notes.get(at, ""))
    Console(highlight=False).print(table)
    for sentence in conclusions(test):
        print(sentence)


def conclusions(test: "LrRangeTest") -> list[str]:
    """Return sentences: how the test ended, what it suggests and why, and what that is worth."""
    recipe, curve, said = test.recipe, test.curve, []
    steps = len(curve.losses)
    if test.has_diverged:
        said.append(f"the loss diverged after step {steps}, at learning rate {show_lr(curve.lrs[-1])}")
    elif test.was_stopped:
        said.append(f"stopped after {steps} of {test.steps} steps")
    found, own = curve.suggestion(), f"the recipe's peak is {show_lr(peak_lr(recipe))}"
    if found is None:
        return [*said, f"no suggestion, because the loss did not fall over enough steps; {own}"]
    reason = f"a third of {show_lr(found.lowest)}, where the moving average of the loss is lowest"
    said.append(f"suggested peak: {show_lr(found.lr)}, {reason}; {own}")
    said.append(f"the loss falls fastest at {show_lr(found.steepest)}")
    if not found.is_lowest_inside:
        said.append("the loss was still falling at the end: a higher --to may give a higher suggestion")
    said.append(f"to take it, add optimizer.lr={show_lr(lr_key_for(recipe, found.lr))}")
    return said
