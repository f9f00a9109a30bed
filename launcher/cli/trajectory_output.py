"""Prints what `bigbatch replay` and `bigbatch diff` found."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from launcher.experiments.replay import Replayed
    from launcher.experiments.run_difference import RunDifference
    from launcher.runs.step_layers import LayerDifference


def print_replayed(found: "Replayed") -> None:
    """Print the first difference of a replay, or that there is none, and what has changed since the run."""
    how = "bit for bit" if found.exact else "within rounding, because hardware or cut differ or are not deterministic"
    origin = f"the checkpoint of step {found.begin}" if found.begin else "the start of the run"
    print(f"{found.run}: steps {found.begin + 1} to {found.end} recomputed from {origin}, compared {how}")
    print(f"  {found.setting.cut}, {found.setting.engine}, {found.setting.device}, {found.setting.precision}")
    if found.difference is None:
        print(f"equal in every step: {', '.join(found.layers)}")
        compared = ", ".join(f"step {step}" for step in found.checkpoints)
        print(f"equal checkpoints: {compared}" if compared else "no checkpoint lies in these steps")
    else:
        print(f"first difference: {_sentence(found.difference, 'recorded', 'recomputed')}")
    for name, then, now in found.changed:
        print(f"note: {name} was {then} then and is {now} here")


def print_run_difference(found: "RunDifference") -> None:
    """Print what differs between two runs, and where they diverge first."""
    for title, rows in (("recipe", found.recipe), ("data", found.data), ("cut, machine and code", found.setting)):
        if rows:
            _print_rows(title, found.runs, rows)
        else:
            print(f"{title}: no difference")
    if found.rounding:
        print("differences that rounding explains are left out, because cut or machine differ")
    if found.first is None:
        print(f"equal: all {found.steps:,} steps that both have recorded, in {', '.join(found.layers)}")
        return
    print(f"first difference: {_sentence(found.first, *found.runs)}")
    if found.may_be_the_update:
        print(
            f"  the cause is the forward pass, or the update of an earlier step: there is no checkpoint of step "
            f"{found.first.step - 1} in both runs (run.save_every, run.keep)"
        )


def _sentence(difference: "LayerDifference", first: str, second: str) -> str:
    step, layer = difference.step, difference.layer
    if isinstance(difference.second, dict):  # a tensor; a layer is None where e.g. the gradient overflowed
        tensor = difference.second
        return (
            f"step {step}, {layer}: {tensor['name']} differs in {tensor['elements']:,} elements, by at most "
            f"{tensor['largest']:.2g}"
        )
    return f"step {step}, {layer}: {difference.first!s} ({first}), {difference.second!s} ({second})"


def _print_rows(title: str, runs: tuple[str, str], rows: Sequence[tuple[str, Any, Any]]) -> None:
    table = Table(title, box=None, header_style="bold")
    for run in runs:
        table.add_column(Text(run))
    for name, one, other in rows:
        table.add_row(Text(name), Text(str(one)), Text(str(other)))
    console = Console()
    if not console.is_terminal:
        console = Console(width=160)
    console.print(table)
