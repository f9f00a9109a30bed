"""From what a user asks to jobs in the queue: recipes are resolved and checked, code and recipe are put aside, then submitted.

Everything that can be known now is checked now: a job that waited a day must not end with a typing error.
"""

import re
import statistics
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
import yaml

import launcher
from launcher.cut import Cut, cut_for_model
from launcher.engine_choice import choose_engine
from launcher.history import History
from launcher.run_directory import RunDirectory
from launcher.train import open_shards
from models import batch_norm
from models.build import build
from recipes.errors import UserError
from recipes.load import load
from recipes.schedule import Timetable
from recipes.schema import Recipe
from slurm.cluster import LOCAL, Cluster, load_cluster
from slurm.job import Job, Resources, Submission, parse_minutes, parse_nodes, show_minutes
from slurm.partitions import check_fits, read_partitions
from slurm.snapshot import snapshot
from slurm.state import job_states
from slurm.submit import CODE, cancel, check_path, plain_word, script
from slurm.submit import submit as send

PACKAGES = ["recipes", "models", "data", "slurm", "launcher"]
WEIGHTS = "weights.safetensors"  # what a finished job exports into its run directory
_SHOWN_SIZES = 4  # cuts printed of a range of nodes


@dataclass(frozen=True)
class Options:
    """What goes for all recipes of one `bigbatch submit`."""

    data: Path | None = None
    run_dir: Path | None = None
    cluster: str | None = None
    nodes: str = "1"
    gpus_per_node: int | None = None
    partition: str | None = None
    time: str | None = None
    sweep: str | None = None
    after: str | None = None
    micro_batch: int | None = None
    workers: int | None = None


@dataclass(frozen=True)
class Run:
    """One run that will be submitted."""

    recipe: Recipe
    directory: RunDirectory

    @property
    def job_folder(self) -> Path:
        return self.directory.path / "job"


def submit(arguments: list[str], options: Options, dry_run: bool) -> None:
    """Submit recipes, each with the overrides that follow it: one job, a chain of jobs, or a sweep; or print what would be.

    Raises:
        UserError: anything that would keep a job from running; then nothing was submitted.
    """
    cluster_name, cluster = load_cluster(options.cluster)
    resources = _resources(options, cluster, cluster_name)
    steps = plan(arguments, options)
    for number, runs in enumerate(steps):
        for run in runs:
            _check_recipe(run, resources, options.micro_batch, follows=number > 0)
    if cluster_name != LOCAL:
        partition = check_fits(resources, cluster, read_partitions())
        if cluster.cpus_per_task is None:
            resources = resources.model_copy(update={"cpus_per_task": partition.cpus_per_task(resources)})
    _check_free(runs for runs in steps)
    if dry_run:
        _print_plan(steps, resources, cluster_name, cluster, options)
        return
    submitted: list[Submission] = []
    for runs in steps:
        after = submitted[-1].job_id if submitted else options.after
        try:
            submitted += _send(runs, resources, cluster_name, cluster, options, after)
        except UserError:
            for earlier in submitted:
                cancel(earlier)
            raise
    print(f"watch with: bigbatch runs {steps[0][0].directory.path.parent}")


def plan(arguments: list[str], options: Options) -> list[list[Run]]:
    """The runs to submit: the outer list is a chain, an inner one a sweep.

    Raises:
        UserError: a recipe or an override is wrong, or a sweep is asked of a chain.
    """
    named = _recipes_with_overrides(arguments)
    if options.sweep and len(named) > 1:
        raise UserError("--array sweeps over one recipe and there are several: submit the recipes that follow once the best is known")
    if options.sweep:
        (name, overrides), (key, values) = named[0], _sweep(options.sweep)
        parent = options.run_dir or Path("runs") / f"{load(name, overrides).name}-{key}"
        return [[_run(load(name, [*overrides, f"{key}={v}"]), parent / plain_word(f"{key}={v}"), options.data) for v in values]]
    chain: list[list[Run]] = []
    for name, overrides in named:
        recipe = load(name, overrides)
        if len(named) == 1:
            path = options.run_dir or Path("runs") / recipe.name
        else:
            path = (options.run_dir or Path("runs")) / recipe.name
        if chain and not any(text.startswith("model.weights=") for text in overrides):
            weights = chain[-1][0].directory.path / WEIGHTS
            recipe = recipe.model_copy(update={"model": recipe.model.model_copy(update={"weights": str(weights)})})
        chain.append([_run(recipe, path, options.data)])
    paths = [run.directory.path for runs in chain for run in runs]
    if len(set(paths)) < len(paths):
        raise UserError("two recipes of the chain have one name and would share a run directory: give one of them name=OTHER")
    return chain


def _recipes_with_overrides(arguments: list[str]) -> list[tuple[str, list[str]]]:
    named: list[tuple[str, list[str]]] = []
    for argument in arguments:
        if "=" in argument and not argument.endswith((".yaml", ".yml")):
            if not named:
                raise UserError(f"the override {argument!r} comes before any recipe: overrides follow the recipe they change")
            named[-1][1].append(argument)
        else:
            named.append((argument, []))
    return named


def _sweep(text: str) -> tuple[str, list[str]]:
    """Key and values of ``key=v1,v2``; a comma inside brackets does not divide."""
    key, equals, rest = text.partition("=")
    values = re.findall(r"(?:\[[^\]]*\]|[^,\[])+", rest)
    if not equals or len(values) < 2 or len(set(values)) < len(values):
        raise UserError(f"--array {text!r} is not a sweep: give a key and two or more different values, e.g. optimizer.lr=1e-3,2e-3,4e-3")
    return key, values


def _run(recipe: Recipe, path: Path, data: Path | None) -> Run:
    """The run with all paths absolute: the job starts in another folder."""
    where = str(data) if data else recipe.data.path
    weights = recipe.model.weights
    changes = {}
    if where is not None:
        changes["data"] = recipe.data.model_copy(update={"path": str(Path(where).absolute())})
    if weights not in (None, "timm"):
        changes["model"] = recipe.model.model_copy(update={"weights": str(Path(weights).absolute())})
    return Run(recipe.model_copy(update=changes), RunDirectory(path.absolute()))


def _resources(options: Options, cluster: Cluster, cluster_name: str) -> Resources:
    least, most = parse_nodes(options.nodes)
    limit = options.time or cluster.time
    if cluster_name == LOCAL and most > 1:
        raise UserError(f"--cluster local is one machine and --nodes is {options.nodes}: leave it out")
    return Resources(
        min_nodes=least,
        max_nodes=most,
        gpus_per_node=cluster.gpus_per_node if options.gpus_per_node is None else options.gpus_per_node,
        cpus_per_task=cluster.cpus_per_task or 1,
        partition=options.partition or cluster.partition,
        minutes=parse_minutes(limit) if limit else None,
    )


def _check_recipe(run: Run, resources: Resources, micro_batch: int | None, follows: bool) -> None:
    recipe = run.recipe
    shards = open_shards(recipe)
    Timetable(recipe, len(shards.split("train")))
    choose_engine(recipe)
    cuts(recipe, resources, micro_batch, len(shards.classes))
    weights = recipe.model.weights
    if weights not in (None, "timm") and not follows and not Path(weights).exists():
        raise UserError(f"there are no weights {weights}: model.weights is a run directory, a weights file, or timm")


def cuts(recipe: Recipe, resources: Resources, micro_batch: int | None, classes: int) -> list[Cut]:
    """The cut of the batch for every number of nodes that the job may get.

    Raises:
        UserError: the model does not exist, or one of the cuts is impossible.
    """
    with torch.device("meta"):
        model = build(recipe, classes)
    has_batch_norm = batch_norm.attach(model, recipe.batch.statistics_size) is not None
    sizes = range(resources.min_nodes, resources.max_nodes + 1)
    return [cut_for_model(recipe, nodes * resources.tasks_per_node, micro_batch, has_batch_norm) for nodes in sizes]


def _check_free(steps: Iterable[list[Run]]) -> None:
    """Refuse run directories that hold another recipe, or whose job is in the queue."""
    runs = [run for runs in steps for run in runs]
    states = job_states([run.job_folder for run in runs])
    for run in runs:
        state = states.get(run.job_folder)
        path = run.directory.path
        check_path(run.job_folder)
        if state and state.is_active:
            raise UserError(f"{path} has job {state.job_id} in the queue ({state.name}): `bigbatch cancel {path}` first")
        run.directory.check_recipe(run.recipe)


def _send(
    runs: list[Run], resources: Resources, cluster_name: str, cluster: Cluster, options: Options, after: str | None
) -> list[Submission]:
    if len(runs) == 1:
        folder = runs[0].job_folder
    else:  # of its own, so that adding to a sweep leaves the code of the runs that wait alone
        folder = runs[0].directory.path.parent / f"array-{time.strftime('%Y%m%d-%H%M%S')}"
    jobs = []
    for run in runs:
        run.directory.check_is_free_for(run.recipe)
        run.job_folder.mkdir(exist_ok=True)
        (run.job_folder / "recipe.yaml").write_text(yaml.safe_dump(run.recipe.to_dict(), sort_keys=False))
        jobs.append(_job(run, cluster, options))
        (run.job_folder / "job.json").write_text(jobs[-1].model_dump_json(indent=1))
    folder.mkdir(exist_ok=True)
    snapshot(Path(launcher.__file__).parents[1], PACKAGES, folder / CODE)
    submitted = send(jobs, resources, cluster_name, cluster, folder, after)
    for run, submission in zip(runs, submitted):
        after_it = f", after job {after}" if after else ""
        print(f"submitted {run.recipe.name} as job {submission.job_id}{after_it}: {run.directory.path}")
    return submitted


def _job(run: Run, cluster: Cluster, options: Options) -> Job:
    given = {"--micro-batch": options.micro_batch, "--workers": options.workers, "--stage": cluster.stage}
    return Job(
        name=run.recipe.name,
        folder=run.job_folder,
        module="launcher.job",
        arguments=[str(run.directory.path), *(str(part) for pair in given.items() if pair[1] is not None for part in pair)],
        progress=run.directory.checkpoints,
    )




def _print_plan(steps: list[list[Run]], resources: Resources, cluster_name: str, cluster: Cluster, options: Options) -> None:
    after = options.after
    for number, runs in enumerate(steps):
        first = runs[0]
        classes = len(open_shards(first.recipe).classes)
        if cluster_name != LOCAL:
            print(script(resources, cluster, first.recipe.name, len(runs), after).rstrip())
            print()
        for run in runs:
            timetable = Timetable(run.recipe, len(open_shards(run.recipe).split("train")))
            print(f"# run        {run.directory.path}")
            print(f"# recipe     {run.recipe.name}: {run.recipe.model.name}, {timetable.total_steps:,} steps of {run.recipe.batch.global_} images")
            for warning in timetable.warnings():
                print(f"# warning    {warning}")
        if number:
            print(f"# starts     after {steps[number - 1][0].recipe.name} has succeeded, from the weights it exports")
        possible = cuts(first.recipe, resources, options.micro_batch, classes)
        for nodes, cut in list(enumerate(possible, resources.min_nodes))[:_SHOWN_SIZES]:
            print(f"# cut        {nodes} node{'s' if nodes > 1 else ''}: {cut}")
        if len(possible) > _SHOWN_SIZES:
            print(f"# cut        ... {resources.max_nodes} nodes: {possible[-1]}")
        limit = show_minutes(resources.minutes) if resources.minutes else "the partition's"
        print(f"# time       limit {limit}; {_estimate(first, possible)}")
        print(f"# survives   requeues itself before the limit and after failures; gives up after {1 + cluster.retries} starts without a new checkpoint")
        after = "<the job before>"
    print("# nothing was submitted")


def _estimate(run: Run, possible: list[Cut]) -> str:
    """Training time at the speed per process that earlier runs of this model had, if there are any."""
    speeds = []
    for other in sorted(run.directory.path.parent.glob("*/run.json")):
        try:
            history = History(other.parent)
            processes = int(re.search(r"(\d+) process", history.starts[-1]["cut"])[1])
        except (UserError, TypeError, KeyError, IndexError):
            continue
        if (history.recipe.model.name, history.recipe.input.size) == (run.recipe.model.name, run.recipe.input.size):
            speeds.append((history.images_per_second / processes, history.starts[-1]["device"]))
    if not speeds:
        return "no run of this model beside this one tells how fast it is"
    speed, device = statistics.median(s for s, _ in speeds), speeds[-1][1]
    timetable = Timetable(run.recipe, len(open_shards(run.recipe).split("train")))
    images = timetable.total_steps * run.recipe.batch.global_
    hours = [images / speed / cut.world_size / 3600 for cut in (possible[-1], possible[0])]
    span = f"{hours[0]:.1f}" if len(possible) == 1 else f"{hours[0]:.1f} to {hours[1]:.1f}"
    return f"about {span} h of training at the {speed:,.0f} images/s a process of earlier runs ({device})"
