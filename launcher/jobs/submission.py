"""From what a user asks to jobs in the queue: recipes are resolved and checked, code and recipe are put aside, then submitted.

Everything that can be known now is checked now: a job that waited a day must not end with a typing error.
"""

import time
from pathlib import Path

import yaml

import launcher
from launcher.jobs.planned_runs import Options, PlannedRun, plan
from launcher.jobs.submission_checks import check_free, check_recipe
from launcher.jobs.submission_preview import print_preview
from recipes.errors import UserError
from slurm.cluster import LOCAL, Cluster, load_cluster
from slurm.job import Job, Resources, Submission, parse_minutes, parse_nodes
from slurm.partitions import check_fits, read_partitions
from slurm.snapshot import snapshot
from slurm.submit import CODE, cancel_job, submit_jobs


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
            check_recipe(run, resources, options.micro_batch, number > 0, cluster)
    if cluster_name != LOCAL:
        partition = check_fits(resources, cluster, read_partitions())
        if cluster.cpus_per_task is None:
            resources = resources.model_copy(update={"cpus_per_task": partition.cpus_per_task(resources)})
    check_free(steps)
    if dry_run:
        print_preview(steps, resources, cluster_name, cluster, options)
        return
    submitted: list[Submission] = []
    for runs in steps:
        after = submitted[-1].job_id if submitted else options.after
        try:
            submitted += _send(runs, resources, cluster_name, cluster, options, after)
        except UserError:
            for earlier in submitted:
                cancel_job(earlier)
            raise
    print(f"watch with: bigbatch runs {steps[0][0].directory.path.parent}")


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


def _send(
    runs: list[PlannedRun],
    resources: Resources,
    cluster_name: str,
    cluster: Cluster,
    options: Options,
    after: str | None,
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
    snapshot(Path(launcher.__file__).parents[1], folder / CODE)
    submitted = submit_jobs(jobs, resources, cluster_name, cluster, folder, after)
    for run, submission in zip(runs, submitted):
        after_it = f", after job {after}" if after else ""
        print(f"submitted {run.recipe.name} as job {submission.job_id}{after_it}: {run.directory.path}")
    return submitted


def _job(run: PlannedRun, cluster: Cluster, options: Options) -> Job:
    given = {"--micro-batch": options.micro_batch, "--workers": options.workers, "--stage": cluster.stage}
    return Job(
        name=run.recipe.name,
        folder=run.job_folder,
        module="launcher.job",
        arguments=[
            str(run.directory.path),
            *(str(part) for pair in given.items() if pair[1] is not None for part in pair),
        ],
        progress=run.directory.checkpoints,
    )
