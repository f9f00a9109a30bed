"""`bigbatch submit`: resolves and checks recipes, copies code and recipe into the run directory, and submits the job.

Everything that can be known before the job waits is checked here: a job must not wait a day and then fail on a typing
error.
"""

import shlex
import shutil
import time
from pathlib import Path

import yaml

import launcher
from launcher.jobs.planned_runs import PlannedRun, SubmitOptions, plan_runs
from launcher.jobs.submit_checks import check_predecessor, check_recipe, check_run_directories
from launcher.jobs.submit_dry_run import print_submission
from launcher.processes import option_arguments
from recipes.errors import UserError
from recipes.user_code import code_to_copy
from slurm.cluster import LOCAL, Cluster, load_cluster
from slurm.job import Job, Resources, Submission, parse_minutes, parse_nodes
from slurm.partitions import fitting_partitions, read_partitions
from slurm.snapshot import snapshot
from slurm.submit import CODE, cancel_job, submit_jobs


def submit(arguments: list[str], options: SubmitOptions, dry_run: bool) -> None:
    """Submit one job, a chain of jobs or a sweep; with `dry_run`, print what would be submitted.

    Args:
        arguments: recipes, each followed by its overrides.

    Raises:
        UserError: something would keep a job from running; then nothing was submitted.
    """
    cluster_name, cluster = load_cluster(options.cluster)
    resources = _resources(options, cluster, cluster_name)
    steps = plan_runs(arguments, options)
    for number, runs in enumerate(steps):
        for run in runs:
            check_recipe(run, resources, options, number > 0, cluster)
    if cluster_name != LOCAL:
        partitions = fitting_partitions(resources, cluster, read_partitions())
        if cluster.cpus_per_task is None:
            fewest = min(partition.cpus_per_task(resources) for partition in partitions)
            resources = resources.model_copy(update={"cpus_per_task": fewest})
    if options.after:
        check_predecessor(options.after, cluster_name)
    check_run_directories(steps)
    if dry_run:
        print_submission(steps, resources, cluster_name, cluster, options)
        return
    submitted: list[Submission] = []
    for runs in steps:
        after = submitted[-1].job_id if submitted else options.after
        new = _missing_folders(runs)
        try:
            submitted += _submit_step(runs, resources, cluster_name, cluster, options, after)
        except UserError:
            for folder in new:  # a refused submission leaves no run behind
                shutil.rmtree(folder, ignore_errors=True)
            for earlier in submitted:
                cancel_job(earlier)
            raise
    print(f"watch with: bigbatch runs {shlex.quote(str(steps[0][0].directory.path.parent))}")


def _missing_folders(runs: list[PlannedRun]) -> list[Path]:
    """Return the folders that submitting the runs is going to make."""
    folders = [folder for run in runs for folder in (run.directory.path, run.job_folder)]
    return [folder for folder in folders if not folder.exists()]


def _resources(options: SubmitOptions, cluster: Cluster, cluster_name: str) -> Resources:
    least, most = parse_nodes(options.nodes)
    limit = options.time or cluster.time
    if cluster_name == LOCAL and most > 1:
        raise UserError(f"--cluster local is one machine and --nodes is {options.nodes}: leave --nodes out")
    return Resources(
        min_nodes=least,
        max_nodes=most,
        gpus_per_node=cluster.gpus_per_node if options.gpus_per_node is None else options.gpus_per_node,
        gpu_type=options.gpu_type or cluster.gpu_type,
        cpus_per_task=cluster.cpus_per_task or 1,
        partition=options.partition or cluster.partition,
        minutes=parse_minutes(limit) if limit else None,
    )


def _submit_step(
    runs: list[PlannedRun],
    resources: Resources,
    cluster_name: str,
    cluster: Cluster,
    options: SubmitOptions,
    after: str | None,
) -> list[Submission]:
    """Submit one step of a chain: a single run, or the runs of a sweep as a job array."""
    if len(runs) == 1:
        folder = runs[0].job_folder
    else:  # a new folder each time, because waiting runs of an earlier sweep keep the code they were submitted with
        folder = runs[0].directory.path.parent / f"array-{time.strftime('%Y%m%d-%H%M%S')}"
    jobs = []
    for run in runs:
        run.directory.check_is_free_for(run.recipe)
        run.job_folder.mkdir(exist_ok=True)
        (run.job_folder / "recipe.yaml").write_text(yaml.safe_dump(run.recipe.to_dict(), sort_keys=False))
        jobs.append(_job(run, cluster, options))
        (run.job_folder / "job.json").write_text(jobs[-1].model_dump_json(indent=1))
    folder.mkdir(exist_ok=True)
    modules = dict.fromkeys(module for run in runs for module in run.recipe.code.modules)
    snapshot(Path(launcher.__file__).parents[1], folder / CODE, code_to_copy(modules))
    try:
        submitted = submit_jobs(jobs, resources, cluster_name, cluster, folder, after, options.at_once)
    except UserError:
        if len(runs) > 1:
            shutil.rmtree(folder, ignore_errors=True)
        raise
    for run, submission in zip(runs, submitted):
        if run.lr_note:
            print(f"note: {run.lr_note}")
        after_it = f", after job {after}" if after else ""
        print(f"submitted {run.recipe.name} as job {submission.job_id}{after_it}: {run.directory.path}")
    return submitted


def _job(run: PlannedRun, cluster: Cluster, options: SubmitOptions) -> Job:
    given = {
        "--micro-batch": options.micro_batch,
        "--workers": options.workers,
        "--stage": cluster.stage,
        "--audit": options.audit,
    }
    return Job(
        name=run.recipe.name,
        folder=run.job_folder,
        module="launcher.job",
        arguments=[str(run.directory.path), *option_arguments(given)],
        progress=run.directory.checkpoints,
    )
