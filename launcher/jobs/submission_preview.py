"""`bigbatch submit --dry-run`: what would be submitted."""

import re
import statistics

from launcher.jobs.planned_runs import Options, PlannedRun
from launcher.jobs.submission_checks import choices
from launcher.planning.auto_engine import EngineChoice
from launcher.recipe_shards import open_shards
from launcher.runs.history import History
from recipes.errors import UserError
from recipes.schedule import StepSchedule
from slurm.cluster import LOCAL, Cluster
from slurm.job import Resources, show_minutes
from slurm.submit import script

_SHOWN_SIZES = 4  # cuts printed of a range of nodes


def print_preview(
    steps: list[list[PlannedRun]], resources: Resources, cluster_name: str, cluster: Cluster, options: Options
) -> None:
    """Print the batch script, the cut and the plan of each job."""
    after = options.after
    for number, runs in enumerate(steps):
        first = runs[0]
        classes = len(open_shards(first.recipe).classes)
        if cluster_name != LOCAL:
            print(script(resources, cluster, first.recipe.name, len(runs), after).rstrip())
            print()
        for run in runs:
            schedule = StepSchedule(run.recipe, len(open_shards(run.recipe).split("train")))
            print(f"# run        {run.directory.path}")
            what = f"{schedule.total_steps:,} steps of {run.recipe.batch.global_} images"
            print(f"# recipe     {run.recipe.name}: {run.recipe.model.name}, {what}")
            for warning in schedule.warnings():
                print(f"# warning    {warning}")
        if number:
            print(f"# starts     after {steps[number - 1][0].recipe.name} has succeeded, from the weights it exports")
        possible = choices(first.recipe, resources, options.micro_batch, classes, cluster)
        _print_cuts(possible, resources)
        without = "none" if cluster_name == LOCAL else "the partition's"
        limit = show_minutes(resources.minutes) if resources.minutes else without
        print(f"# time       limit {limit}; {_estimate(first, possible, cluster)}")
        limit = f"gives up after {1 + cluster.retries} starts without a new checkpoint"
        again = "starts itself again" if cluster_name == LOCAL else "requeues itself"
        print(f"# survives   {again} before the limit and after failures; {limit}")
        after = "<the job before>"
    print("# nothing was submitted")


def _print_cuts(possible: list[EngineChoice], resources: Resources) -> None:
    sized = list(enumerate(possible, resources.min_nodes))
    shown = sized if len(sized) <= _SHOWN_SIZES else [*sized[: _SHOWN_SIZES - 1], sized[-1]]
    said = None
    for nodes, choice in shown:
        print(f"# cut        {nodes} node{'s' if nodes > 1 else ''}: {choice.cut}")
        if choice.reason and choice.reason != said:
            print(f"#            {choice.reason}")
            said = choice.reason


def _estimate(run: PlannedRun, possible: list[EngineChoice], cluster: Cluster) -> str:
    """Training time at the speed per process that earlier runs of this model had; if there are none, as the plan predicts."""
    schedule = StepSchedule(run.recipe, len(open_shards(run.recipe).split("train")))
    speeds = []
    for other in sorted(run.directory.path.parent.glob("*/run.json")):
        try:
            history = History(other.parent)
            processes = int(re.search(r"(\d+) process", history.starts[-1]["cut"])[1])
        except (UserError, TypeError, KeyError, IndexError):
            continue
        if (history.recipe.model.name, history.recipe.input.size) == (run.recipe.model.name, run.recipe.input.size):
            speeds.append((history.images_per_second / processes, history.starts[-1]["device"]))
    if speeds:
        speed, device = statistics.median(s for s, _ in speeds), speeds[-1][1]
        images = schedule.total_steps * run.recipe.batch.global_
        span = _hours([images / speed / choice.cut.world_size for choice in possible])
        return f"about {span} of training at the {speed:,.0f} images/s a process of earlier runs ({device})"
    planned = [schedule.total_steps * choice.step_seconds for choice in possible if choice.step_seconds]
    if cluster.gpu is None or not planned:
        return "no run of this model beside this one tells how fast it is"
    return f"about {_hours(planned)} of training as planned for {cluster.gpu}; `bigbatch plan` says what that rests on"


def _hours(seconds: list[float]) -> str:
    """What the fewest and the most nodes need, the shorter first."""
    least, most = (f"{value / 3600:.1f}" for value in (min(seconds), max(seconds)))
    return f"{least} h" if least == most else f"{least} to {most} h"
