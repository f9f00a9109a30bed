"""Random disturbances over two runs and a sweep at the same time: each run finishes once, with undisturbed weights.

All five are real trainings of one trajectory, in one process each or, the run `two`, in two processes on two nodes.
So they must end with the bits of an undisturbed training of as many processes. `BIGBATCH_DISTURBANCES` sets how many
disturbances there are, `BIGBATCH_SEED` which.
"""

import json
import os
import random
import signal
import time
from collections import Counter
from pathlib import Path

import pytest
import torch

from launcher.checkpoints.checkpoint import latest_valid
from launcher.jobs.cancel_resume import resume_run
from slurm.ledger import Ledger
from slurm.state import NO_ANSWER, JobState, job_states
from slurm.submit import CODE
from tests.launcher.comparison import losses
from tests.launcher.conftest import SMALL, train_to_end
from tests.slurm.cluster import processes_with
from tests.slurm.conftest import job_id

COUNT = int(os.environ.get("BIGBATCH_DISTURBANCES", "3"))
SEED = int(os.environ.get("BIGBATCH_SEED", "0"))
# 22 steps an epoch; a step takes a second while disturbances happen, so that no run is over before the last one.
EPOCHS = 3 + COUNT // 2
LONG = [*SMALL, f"schedule.epochs={EPOCHS}", "schedule.warmup_epochs=0", "run.evaluate_every=1000"]
ENDS = ("COMPLETED", "FAILED", "CANCELLED", "TIMEOUT", "NODE_FAIL", "LOST")
PATIENCE = 240 + 20 * COUNT  # seconds after the last disturbance


@pytest.mark.slow
@pytest.mark.timeout(600 + 60 * COUNT)
def test_runs_survive_random_disturbances(submitted, cluster, unreliable_commands, digits, tmp_path):
    references = {}
    for world in (1, 2):
        references[world] = tmp_path / f"reference-{world}"
        train_to_end(digits, references[world], *LONG, "--procs", str(world))
    (tmp_path / "clusters.toml").write_text("[test]\nretries = 60\n[test.sbatch]\nhold = true\n")
    where = ["--gpus-per-node", 1, "--time", 60]
    submitted("demo", *LONG, "run.save_every=3", *where, "--nodes", 2, "--run-dir", tmp_path / "two")
    submitted("demo", *LONG, "run.save_every=4", *where, "--run-dir", tmp_path / "one")
    submitted("demo", *LONG, *where, "--array", "run.save_every=2,3,5")
    sweep = sorted((tmp_path / "runs/demo-run.save_every").glob("run.*"))
    runs = [tmp_path / "two", tmp_path / "one", *sweep]
    assert len(runs) == 5
    slow = tmp_path / "slow"
    slow.touch()
    submissions = [json.loads((run / "job" / "submission.json").read_text()) for run in runs]
    for folder in {submission["folder"] for submission in submissions}:  # the runs of the sweep share theirs
        with (Path(folder) / CODE / "launcher" / "training" / "loop.py").open("a") as file:
            file.write(_RECORDING_STEP.format(slow=str(slow)))
    for job in {job_id(run).partition("_")[0] for run in runs}:
        cluster.run("scontrol", "release", job)

    draw, done = random.Random(SEED), []
    while len(done) < COUNT:
        time.sleep(draw.uniform(0.5, 3))
        _release_held(runs)
        running = [run for run, state in _states(runs).items() if state.name == "RUNNING" and (run / "ran").exists()]
        if not running:
            assert not all(state.name in ENDS for state in _states(runs).values()), "they ended before the last one"
            continue
        name, disturb = draw.choice([*DISTURBANCES.items()])
        run = draw.choice(running)
        disturb(cluster, job_id(run), draw)
        done.append(f"{name} ({run.name})")
        print(f"{time.strftime('%X')} {done[-1]}", flush=True)
    slow.unlink()
    for run in runs:
        _try(cluster, "scontrol", "update", f"JobId={job_id(run)}", "TimeLimit=60")  # a minute would last for ever
    deadline = time.monotonic() + PATIENCE
    while not all(state.name in ENDS for state in _states(runs).values()) and time.monotonic() < deadline:
        _release_held(runs)
        time.sleep(0.5)

    states = {run.name: (state.name, state.note) for run, state in _states(runs).items()}
    assert {name for name, _ in states.values()} == {"COMPLETED"}, (done, states)
    for run in runs:
        assert len(Ledger(run / "job").events("finished")) == 1
        _assert_one_start_at_a_time(run)
        _assert_same_bits(run, references[2 if run.name == "two" else 1])
    assert not cluster.run("squeue", "-h")
    cluster.end_stale_processes()
    starts = sum(len(Ledger(run / "job").events("start")) for run in runs)
    print(f"{len(done)} disturbances, {starts} starts: {dict(Counter(name.partition(' (')[0] for name in done))}")


@pytest.fixture
def unreliable_commands(bigbatch, monkeypatch, tmp_path):
    """Put `squeue` and `sacct` that fail while a file exists before the real ones; the jobs inherit the PATH."""
    folder, failing = tmp_path / "bin", tmp_path / "failing"
    folder.mkdir()
    for name in ("squeue", "sacct"):
        (folder / name).write_text(
            f'#!/bin/bash\n[ ! -e "{failing}" ] || {{ echo "{name}: error: Unable to contact" >&2; exit 1; }}\n'
            f'PATH="${{PATH#{folder}:}}" exec {name} "$@"\n'
        )
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")
    return failing


def _states(runs: list[Path]) -> dict[Path, JobState]:
    return {folder.parent: state for folder, state in job_states([run / "job" for run in runs]).items()}


def _release_held(runs: list[Path]) -> None:
    """Do what the note of a held job says. SLURM holds a job if the node on which it was to start has just gone."""
    for run, state in _states(runs).items():
        if state.is_held:
            assert "bigbatch resume" in state.note
            resume_run(run)


def _assert_same_bits(run: Path, reference: Path) -> None:
    assert losses(run) == losses(reference)
    ours, theirs = (latest_valid(folder / "checkpoints") for folder in (run, reference))
    assert ours.step == theirs.step == 22 * EPOCHS
    ours, theirs = ours.reader(), theirs.reader()
    assert ours.kinds == theirs.kinds >= {"weights", "ema", "exp_avg"}
    for kind in ours.kinds:
        other = theirs.tensors(kind)
        for name, value in ours.tensors(kind).items():
            assert torch.equal(value, other[name]), f"{run.name}: {kind}/{name}"


def _assert_one_start_at_a_time(run: Path) -> None:
    """Rank 0 of a start begins after rank 0 of the one before has done its last step."""
    spans = sorted(json.loads(file.read_text()) for file in (run / "ran").glob("*.json"))
    for (_, end), (start, _) in zip(spans, spans[1:]):
        assert end <= start + 0.05, f"{run.name}: two starts at once, {spans}"


# Appended to the code that a job keeps. Rank 0 records when its process began and when its last step did.
_RECORDING_STEP = """

_BEGAN = time.time()
_quick_step = Training._step


def _recording_step(self, *arguments):
    import json
    import os
    from pathlib import Path

    if os.environ["RANK"] == "0":
        record = self.log.metrics.path.parent / "ran" / f"{{os.environ['SLURM_JOB_ID']}}-{{os.getpid()}}.json"
        record.parent.mkdir(exist_ok=True)
        unfinished = record.with_suffix(".tmp")  # a kill must not leave half a record
        unfinished.write_text(json.dumps([_BEGAN, time.time()]))
        unfinished.rename(record)
    time.sleep(1.0 if Path({slow!r}).exists() else 0.0)
    return _quick_step(self, *arguments)


Training._step = _recording_step
"""


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


def _no_answer(cluster, job: str, draw: random.Random) -> None:
    """squeue and sacct fail for a while, for the user's commands and for the job's."""
    failing = Path(os.environ["PATH"].partition(":")[0]).parent / "failing"
    failing.touch()
    try:
        [state] = _states([Path(failing.parent / "one")]).values()
        assert state.name == NO_ANSWER or state.name in ENDS, state
        time.sleep(draw.uniform(1, 4))
    finally:
        failing.unlink()


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
    "squeue failing": _no_answer,
    "controller stopped": _stop_the_controller,
    "node down": _lose_a_node,
    "time limit": _limit_the_time,
    "preempted": _preempt,
}
