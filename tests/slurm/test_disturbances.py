"""Random disturbances over two runs and a sweep at the same time: each run finishes once, and never runs twice at once.

The program that stands for the training leaves its entries in order, so that the last start of a run shows whether
any were lost or made twice. `BIGBATCH_DISTURBANCES` sets how many there are, `BIGBATCH_SEED` which.
"""

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest

from slurm.cluster import Cluster
from slurm.ledger import Ledger
from slurm.state import job_states
from tests.slurm.cluster import processes_with
from tests.slurm.test_foreign_clusters import on_cluster, wait_until  # noqa: F401 (a fixture)

COUNT = int(os.environ.get("BIGBATCH_DISTURBANCES", "8"))
SEED = int(os.environ.get("BIGBATCH_SEED", "0"))
ENTRIES = 40 + 10 * COUNT
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "LOST")


@pytest.mark.slow
def test_runs_survive_random_disturbances(on_cluster, cluster, tmp_path):  # noqa: F811
    profile = Cluster(retries=30)
    sweep = on_cluster("a", "b", "c", entries=ENTRIES, gpus_per_node=0, profile=profile)
    pair = on_cluster("two", entries=ENTRIES, min_nodes=1, max_nodes=2, gpus_per_node=1, profile=profile)
    one = on_cluster("one", entries=ENTRIES, gpus_per_node=1, profile=profile)
    runs = [tmp_path / name for name in ("a", "b", "c", "two", "one")]
    ids = {run: submission.job_id for run, submission in zip(runs, [*sweep, *pair, *one])}
    draw, done = random.Random(SEED), []
    while len(done) < COUNT:
        time.sleep(draw.uniform(0.5, 3))
        running = [run for run, state in job_states(runs).items() if state.name == "RUNNING" and (run / "ran").exists()]
        if not running:
            assert not all(state.name in ENDS for state in job_states(runs).values()), (
                "they finished before the last one"
            )
            continue
        name, disturb = draw.choice([*DISTURBANCES.items()])
        disturb(cluster, ids[draw.choice(running)], draw)
        done.append(name)
    wait_until(lambda: all(state.name in ENDS for state in job_states(runs).values()), seconds=400)

    states = job_states(runs)
    assert {run.name: state.name for run, state in states.items()} == {run.name: "COMPLETED" for run in runs}, (
        Counter(done),
        states,
    )
    for run in runs:
        assert len(Ledger(run).events("finished")) == 1
        assert len(list((run / "progress").glob("entry-*"))) == ENTRIES
        _assert_one_start_at_a_time(run)
    assert not cluster.run("squeue", "-h")
    print(f"{len(done)} disturbances: {dict(Counter(done))}")


def _assert_one_start_at_a_time(run: Path) -> None:
    """Rank 0 of a start begins after rank 0 of the one before has ended."""
    records = [json.loads(file.read_text()) for file in (run / "ran").glob("*.json")]
    spans = sorted((record["from"], record["to"]) for record in records if record["rank"] == 0)
    for (_, end), (start, _) in zip(spans, spans[1:]):
        assert end <= start + 0.05, f"{run.name}: two starts at once, {spans}"


def _signal(*options: str):
    def send(cluster, job: str, draw: random.Random) -> None:
        _try(cluster, "scancel", *options, job)

    return send


def _kill_a_rank(cluster, job: str, draw: random.Random) -> None:
    array, _, task = job.partition("_")
    names = {"SLURM_ARRAY_JOB_ID": array, "SLURM_ARRAY_TASK_ID": task} if task else {"SLURM_JOB_ID": job}
    processes = processes_with({**names, "RANK": "0"})
    if processes:
        os.kill(draw.choice(processes), signal.SIGKILL)


def _requeue(cluster, job: str, draw: random.Random) -> None:
    _try(cluster, "scontrol", "requeue", job)


def _suspend(cluster, job: str, draw: random.Random) -> None:
    _try(cluster, "scontrol", "suspend", job)
    time.sleep(draw.uniform(0.5, 2))
    _try(cluster, "scontrol", "resume", job)


def _stop_the_controller(cluster, job: str, draw: random.Random) -> None:
    controller = cluster.controller()
    controller.send_signal(signal.SIGSTOP)
    try:
        time.sleep(draw.uniform(1, 6))
    finally:
        controller.send_signal(signal.SIGCONT)


def _limit_the_time(cluster, job: str, draw: random.Random) -> None:
    _try(cluster, "scontrol", "update", f"JobId={job}", "TimeLimit=1")


def _lose_a_node(cluster, job: str, draw: random.Random) -> None:
    node = draw.choice(cluster.nodes)
    _try(cluster, "scontrol", "update", f"nodename={node}", "state=down", "reason=test")
    time.sleep(draw.uniform(0.5, 2))
    _try(cluster, "scontrol", "update", f"nodename={node}", "state=resume")


def _preempt(cluster, job: str, draw: random.Random) -> None:
    urgent = cluster.occupy_a_node()
    time.sleep(draw.uniform(0.5, 2))
    _try(cluster, "scancel", urgent)


def _try(cluster, *command: str) -> None:
    """Run a command whose job may have ended meanwhile."""
    try:
        cluster.run(*command)
    except AssertionError as error:
        assert any(part in str(error) for part in ("already", "Invalid", "pending", "disabled", "not running")), error


DISTURBANCES = {
    "TERM to the ranks": _signal("-s", "TERM"),
    "USR2 to the ranks": _signal("-s", "USR2"),
    "TERM to the batch shell": _signal("--batch", "-s", "TERM"),
    "a rank killed": _kill_a_rank,
    "scontrol requeue": _requeue,
    "suspended": _suspend,
    "controller stopped": _stop_the_controller,
    "node down": _lose_a_node,
    "time limit": _limit_the_time,
    "preempted": _preempt,
}
