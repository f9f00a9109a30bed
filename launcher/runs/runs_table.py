"""`bigbatch runs`: the state of every run of a folder, in one table."""

import re
import sys
import time
from collections import defaultdict
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from launcher.runs.history import restarts_among
from launcher.runs.intervals import with_interval
from launcher.runs.metrics import best_accuracy
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError
from recipes.run_sections import BranchSettings
from slurm.ledger import Ledger
from slurm.state import JobState, job_states

_DEPTHS = ("*", "*/*")  # patterns of runs, and of the runs of sweeps
_SECONDS_BETWEEN_LOOKS = 10.0
_FRESH = 120.0  # seconds after its last event for which a run without a job counts as running


@dataclass(frozen=True)
class RunStatus:
    """One row of the table. A field is None while it has no value.

    Attributes:
        run: its path below the folder of the table, or its name if the folder is the run itself.
        path: the resolved run directory.
        identity: of the recipe, by which branches know their parent.
    """

    run: str
    path: Path
    recipe: str
    state: str
    job_id: str | None
    nodes: int | None
    step: int | None
    total_steps: int | None
    epoch: float | None
    images_per_second: float | None
    accuracy: float | None
    images: int | None  # on which `accuracy` was measured
    weights: str  # "EMA" or "raw", whichever reached `accuracy`; empty if only raw weights were evaluated
    seconds_left: float | None
    restarts: int
    note: str
    identity: str | None = None
    branch: BranchSettings | None = None


def print_runs(folder: Path, watch: bool = False) -> None:
    """Print the table of the runs in a folder; with `watch`, bring it up to date every ten seconds until Ctrl-C.

    Raises:
        UserError: there is no such folder, or no run in it; or `watch` without a terminal.
    """
    if watch and not sys.stdout.isatty():
        raise UserError("--watch brings the table up to date in a terminal: leave it out where the output is a file")
    console = Console(soft_wrap=True, markup=False, width=None if sys.stdout.isatty() else 240)
    if not watch:
        console.print(_overview(folder))
        return
    with suppress(KeyboardInterrupt), Live(_overview(folder), console=console, auto_refresh=False) as live:
        while True:
            time.sleep(_SECONDS_BETWEEN_LOOKS)
            live.update(_overview(folder), refresh=True)


def _overview(folder: Path) -> Group:
    """Return the table of the runs in a folder, with the notes about them below it."""
    table = Table(box=None, header_style="bold", pad_edge=False)
    for heading in ("run", "recipe", "state", "job", "nodes", "step", "epoch", "images/s", "top-1", "ETA", "restarts"):
        table.add_column(
            heading, justify="left" if heading in ("run", "recipe", "state", "job") else "right", overflow="fold"
        )
    rows = run_statuses(folder)
    for depth, row in _as_tree(rows):
        begins = f" (from step {row.branch.step})" if depth and row.branch else ""
        table.add_row(
            f"{'  ' * (depth - 1)}{'└ ' if depth else ''}{_printable(row.run)}{begins}",
            _printable(row.recipe),
            row.state,
            row.job_id or "",
            _show(row.nodes, "d"),
            f"{row.step:,}/{row.total_steps:,}" if row.step is not None and row.total_steps else "",
            _show(row.epoch, ".2f"),
            _show(row.images_per_second, ",.0f"),
            _accuracy(row),
            _duration(row.seconds_left),
            str(row.restarts),
        )
    return Group(table, *(Text(f"{_printable(row.run)}: {row.note}") for row in rows if row.note))


def run_statuses(folder: Path) -> list[RunStatus]:
    """Return the rows of the table, sorted by name.

    Raises:
        UserError: there is no such folder, or no run in it.
    """
    if not folder.is_dir():
        raise UserError(f"there is no folder {folder}: give the one that holds the run directories")
    paths = (
        [folder]
        if _is_run(folder)
        else sorted(path for depth in _DEPTHS for path in folder.glob(depth) if _is_run(path))
    )
    if not paths:
        raise UserError(f"there are no runs in {folder}: `bigbatch train` and `bigbatch submit` make them")
    states = job_states([path / "job" for path in paths])
    return [
        _row(path, path.name if path == folder else str(path.relative_to(folder)), states.get(path / "job"))
        for path in paths
    ]


def _as_tree(rows: list[RunStatus]) -> list[tuple[int, RunStatus]]:
    """Return the rows with their depths, each branch below its parent; without its parent, a branch has depth 0.

    A parent is known by its directory and its identity, because another run may have taken its place since.
    """
    runs = {(row.path, row.identity) for row in rows}
    children: dict[tuple[Path, str | None] | None, list[RunStatus]] = defaultdict(list)
    for row in rows:
        parent = (Path(row.branch.run).resolve(), row.branch.identity) if row.branch else None
        children[parent if parent in runs else None].append(row)
    ordered: list[tuple[int, RunStatus]] = []

    def add(row: RunStatus, depth: int) -> None:
        ordered.append((depth, row))
        for child in children[row.path, row.identity]:
            add(child, depth + 1)

    for row in children[None]:
        add(row, 0)
    return ordered


def _is_run(path: Path) -> bool:
    return (path / "recipe.yaml").is_file() and path.name != "job" or (path / "job" / "recipe.yaml").is_file()


def _row(path: Path, name: str, state: JobState | None) -> RunStatus:
    """Return one row; a run that cannot be read gets a row with the reason, so that the others are shown."""
    try:
        return _read_row(path, name, state)
    except UserError as error:
        unknown = dict.fromkeys(
            ["step", "total_steps", "epoch", "images_per_second", "accuracy", "images", "seconds_left"]
        )
        state = state or JobState("UNREADABLE", "")
        note = f"it cannot be read: {error}"
        return RunStatus(
            run=name,
            path=path.resolve(),
            recipe="",
            state=state.name,
            job_id=state.job_id or None,
            nodes=state.nodes,
            weights="",
            restarts=0,
            note=note,
            **unknown,
        )


def _read_row(path: Path, name: str, state: JobState | None) -> RunStatus:
    run, ledger = RunDirectory(path), Ledger(path / "job")
    recipe = run.recipe() if run.recipe_file.is_file() else RunDirectory(path / "job").recipe()
    total = run.metadata().total_steps if run.metadata_file.is_file() else None
    events = run.metrics.recent()
    steps = [event for event in events if event["event"] == "step"]
    evaluations = [event for event in events if event["event"] == "evaluation"]
    starts = [event for event in events if event["event"] == "start"]
    step = steps[-1]["step"] if steps else None
    since_start = [event for event in steps if not starts or event["time"] >= starts[-1]["time"]][-50:]
    speed = _median([event["images_per_second"] for event in since_start if "images_per_second" in event])
    left = (total - step) * recipe.batch.global_ / speed if total and step is not None and speed else None
    if state is None:
        state = _without_job(events, step, total)
    best = best_accuracy(evaluations[-1:])
    has_ema = bool(evaluations) and evaluations[-1].get("ema_top1") is not None
    submitted = ledger.events("start")
    restarts = len(submitted) - 1 if submitted else len(restarts_among(starts, total))
    return RunStatus(
        run=name,
        path=path.resolve(),
        recipe=recipe.name,
        state=state.name,
        job_id=state.job_id or None,
        nodes=state.nodes,
        step=step,
        total_steps=total,
        epoch=steps[-1].get("epoch") if steps else None,
        images_per_second=speed,
        accuracy=best.top1 if best else None,
        images=evaluations[-1].get("images") if best else None,
        weights=best.kind if best and has_ema else "",
        seconds_left=left if state.is_active else None,
        restarts=restarts,
        note=state.note,
        identity=recipe.identity(),
        branch=recipe.branch,
    )


def _without_job(events: list[dict], step: int | None, total: int | None) -> JobState:
    """Return the state of a run that was not submitted, judged by its metrics alone."""
    if total is not None and step == total:
        return JobState("COMPLETED", "")
    own = [event for event in events[-1:] if not event.get("shared")]
    fresh = bool(own) and time.time() - own[-1]["time"] < _FRESH
    return JobState("RUNNING" if fresh else "STOPPED", "", is_active=fresh)


def _median(values: list[float]) -> float | None:
    return sorted(values)[len(values) // 2] if values else None


def _accuracy(row: RunStatus) -> str:
    """Return the accuracy with its 95 % interval and the weights that reached it."""
    if row.accuracy is None:
        return ""
    shown = with_interval(row.accuracy, row.images) if row.images else f"{row.accuracy:.2%}"
    return f"{shown} {row.weights}".rstrip()


def _show(value, form: str) -> str:
    return "" if value is None else format(value, form)


def _printable(text: str) -> str:
    """Return a name with its control characters replaced, so that it stays on one line."""
    return re.sub(r"[\x00-\x1f\x7f]", "?", text)


def _duration(seconds: float | None) -> str:
    if seconds is None:
        return ""
    minutes, seconds = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours // 24}d {hours % 24:02}h" if hours >= 48 else f"{hours}:{minutes:02}:{seconds:02}"
