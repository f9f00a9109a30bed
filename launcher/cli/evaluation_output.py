"""Prints what `bigbatch evaluate` found."""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from launcher.evaluation.evaluation_result import EvaluationResult


def print_results(results: "Sequence[EvaluationResult]", as_json: bool, per_class: bool) -> None:
    """Print one line for each result, or one JSON object; with `per_class`, also a table of the last one's classes."""
    for result in results:
        print(json.dumps(result.to_dict()) if as_json else result.line())
    if per_class and not as_json:
        Console().print(_class_table(results[-1]))


def _class_table(result: "EvaluationResult") -> Table:
    table = Table("class", title=result.title, title_justify="left", box=None)
    for heading in ("images", "precision", "recall", "F1"):
        table.add_column(heading, justify="right")
    for scores in result.classes:
        shares = ["–" if one is None else f"{one:.2%}" for one in (scores.precision, scores.recall, scores.f1)]
        table.add_row(Text(scores.name), f"{scores.images:,}", *shares)
    return table
