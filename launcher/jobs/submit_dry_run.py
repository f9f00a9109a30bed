"""`bigbatch submit --dry-run`: prints the batch script, the cut of the batch and the plan, and submits nothing."""

import re
import statistics
from datetime import timedelta

from launcher.jobs.planned_runs import PlannedRun, SubmitOptions
from launcher.jobs.submit_checks import choices_by_nodes
from launcher.planning.auto_engine import EngineChoice
from launcher.recipe_shards import open_shards
from launcher.runs.history import History
from recipes.errors import UserError
from recipes.schedule import StepSchedule
from slurm.batch_script import batch_script
from slurm.cluster import LOCAL, Cluster
from slurm.job import Resources, show_minutes
from slurm.start_estimate import estimated_start
from slurm.submit import check_slurm_is_here, plain_word

_MOST_CUTS = 4  # cuts that are printed of a range of nodes
_MOST_STARTS = 8  # numbers of nodes for which SLURM is asked; each question takes its controller some time


def print_submission(
    steps: list[list[PlannedRun]], resources: Resources, cluster_name: str, cluster: Cluster, options: SubmitOptions
) -> None:
    """Print the batch script, the cut and the plan of each job."""
    after = options.after
    for number, runs in enumerate(steps):
        first = runs[0]
        classes = len(open_shards(first.recipe).classes)
        if cluster_name != LOCAL:
            check_slurm_is_here()
            name = plain_word(first.recipe.name)
            print(batch_script(resources, cluster, name, len(runs), after, options.at_once))
        for run in runs:
            schedule = StepSchedule(run.recipe, len(open_shards(run.recipe).split("train")))
            print(f"# run        {run.directory.path}")
            size = f"{schedule.total_steps:,} steps of {run.recipe.batch.global_} images"
            print(f"# recipe     {run.recipe.name}: {run.recipe.model.name}, {size}")
            if run.lr_note:
                print(f"# note       {run.lr_note}")
            for warning in schedule.warnings():
                print(f"# warning    {warning}")
        if number:
            print(f"# starts     after {steps[number - 1][0].recipe.name} has succeeded, from the weights it exports")
        choices = choices_by_nodes(first.recipe, resources, options.micro_batch, classes, cluster)
        _print_cuts(choices, resources)
        without = "none" if cluster_name == LOCAL else "the partition's"
        limit = show_minutes(resources.minutes) if resources.minutes else without
        seconds, how_long = _training_time(first, choices, cluster)
        print(f"# time       limit {limit}; {how_long}")
        if cluster_name != LOCAL and not number:
            _print_starts(first, resources, cluster, seconds)
        limit = f"gives up after {1 + cluster.retries} starts without a new checkpoint"
        again = "starts itself again" if cluster_name == LOCAL else "requeues itself"
        if options.audit:
            print(f"# audit      every {options.audit} steps, which takes about {1 / options.audit:.1%} more time")
        print(f"# survives   {again} before the limit and after failures; {limit}")
        after = "<the job before>"
    print("# nothing was submitted")


def _print_cuts(choices: list[EngineChoice], resources: Resources) -> None:
    by_nodes = list(enumerate(choices, resources.min_nodes))
    shown = by_nodes if len(by_nodes) <= _MOST_CUTS else [*by_nodes[: _MOST_CUTS - 1], by_nodes[-1]]
    last_reason = None
    for nodes, choice in shown:
        print(f"# cut        {nodes} node{'s' if nodes > 1 else ''}: {choice.cut}")
        if choice.reason and choice.reason != last_reason:
            print(f"#            {choice.reason}")
            last_reason = choice.reason


def _print_starts(run: PlannedRun, resources: Resources, cluster: Cluster, seconds: list[float] | None) -> None:
    """Print for each number of nodes when SLURM expects the job to start, when it would finish, and what it costs.

    Args:
        seconds: training time for each number of nodes, fewest first; None if unknown.
    """
    sizes = range(resources.min_nodes, resources.max_nodes + 1)
    shown = [*sizes] if len(sizes) <= _MOST_STARTS else [*sizes[: _MOST_STARTS - 1], sizes[-1]]
    print(f"# {'nodes':10} {'starts':16}  {'finishes':16}  {'GPU' if resources.gpus_per_node else 'node'}-hours")
    for nodes in shown:
        exactly = resources.model_copy(update={"min_nodes": nodes, "max_nodes": nodes})
        start = estimated_start(batch_script(exactly, cluster, plain_word(run.recipe.name)))
        if isinstance(start, str):
            print(f"# {nodes:<10} no estimate: {start}")
            continue
        finish, cost = "unknown", "unknown"
        if seconds is not None:
            trained = seconds[nodes - resources.min_nodes]
            finish = f"{start + timedelta(seconds=trained):%Y-%m-%d %H:%M}"
            cost = f"{nodes * resources.tasks_per_node * trained / 3600:,.1f}"
        print(f"# {nodes:<10} {start:%Y-%m-%d %H:%M}  {finish:16}  {cost}")
    if seconds is not None and resources.minutes and max(seconds) > resources.minutes * 60:
        print("#            it trains longer than one time limit; the waits between its starts are not counted")


def _training_time(run: PlannedRun, choices: list[EngineChoice], cluster: Cluster) -> tuple[list[float] | None, str]:
    """Return the seconds of training for each choice, and a sentence that says what they rest on.

    They rest on the speed of earlier runs of this model beside this one, else on the plan; None if there is neither.
    """
    schedule = StepSchedule(run.recipe, len(open_shards(run.recipe).split("train")))
    speeds = []
    for other in sorted(run.directory.path.parent.glob("*/run.json")):
        try:
            history = History(other.parent)
        except UserError:
            continue
        start = history.starts[-1] if history.starts else {}
        match = re.search(r"\b([1-9]\d{0,5}) process", start.get("cut", ""))
        if not (match and history.images_per_second):
            continue  # a run that another version wrote, or that has not trained yet, has no speed to offer
        if (history.recipe.model.name, history.recipe.input.size) == (run.recipe.model.name, run.recipe.input.size):
            speeds.append((history.images_per_second / int(match[1]), start.get("device", "?")))
    if speeds:
        speed, device = statistics.median(s for s, _ in speeds), speeds[-1][1]
        images = schedule.total_steps * run.recipe.batch.global_
        seconds = [images / speed / choice.cut.world_size for choice in choices]
        source = f"at the {speed:,.0f} images/s a process of earlier runs ({device})"
        return seconds, f"about {_hours(seconds)} of training {source}"
    planned = [schedule.total_steps * choice.step_seconds for choice in choices if choice.step_seconds]
    if cluster.gpu is None or len(planned) < len(choices):
        return None, "training time unknown: there is no earlier run of this model beside this one to measure its speed"
    source = f"as planned for {cluster.gpu}; `bigbatch plan` says what that rests on"
    return planned, f"about {_hours(planned)} of training {source}"


def _hours(seconds: list[float]) -> str:
    """Return the range of hours, the shortest first."""
    least, most = (f"{value / 3600:.1f}" for value in (min(seconds), max(seconds)))
    return f"{least} h" if least == most else f"{least} to {most} h"
