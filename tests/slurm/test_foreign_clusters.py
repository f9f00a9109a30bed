"""Habits of other people's clusters and shells, tried on a real one with a small program in place of a training."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from slurm import commands
from slurm.cluster import Cluster
from slurm.job import Job, Resources, Submission
from slurm.ledger import Ledger
from slurm.snapshot import snapshot
from slurm.state import JobState, job_states
from slurm.submit import CODE, cancel_job, submit_jobs
from tests.launcher.conftest import digits  # noqa: F401 (a fixture)
from tests.slurm.conftest import SHORT
from tests.structure.test_imports import ROOT

PROGRAM = Path(__file__).parent / "program.py"
# What an interactive session, an outer job and a user's habits leave in the environment.
HOSTILE_VARIABLES = {
    **{"SLURM_NTASKS": "1", "SLURM_NNODES": "1", "SLURM_NPROCS": "1", "SLURM_TASKS_PER_NODE": "1"},
    **{"SLURM_JOB_NUM_NODES": "1", "SLURM_MEM_PER_NODE": "9", "SLURM_CPU_BIND": "none", "SLURM_EXPORT_ENV": "NONE"},
    **{"SLURM_JOB_ID": "1", "SLURM_PROCID": "0", "SLURM_STEP_ID": "0", "SLURM_ARRAY_TASK_ID": "3"},
    **{
        "SLURM_ARRAY_JOB_ID": "1",
        "SLURM_RESTART_COUNT": "7",
        "SLURM_GPUS_PER_NODE": "1",
        "SLURM_DISTRIBUTION": "cyclic",
    },
    **{"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "CUDA_VISIBLE_DEVICES": "7"},
    **{"SBATCH_TIMELIMIT": "1", "SBATCH_NO_REQUEUE": "1", "SBATCH_EXPORT": "NONE", "SBATCH_OPEN_MODE": "truncate"},
    **{"SBATCH_EXCLUSIVE": "user", "SBATCH_ARRAY_INX": "0-5", "SBATCH_SIGNAL": "KILL@600", "SBATCH_GPUS_PER_NODE": "1"},
    **{"SQUEUE_FORMAT": "%j", "SQUEUE_STATES": "PENDING", "SQUEUE_USERS": "nobody", "SQUEUE_PARTITION": "short"},
    **{"SINFO_FORMAT": "%j", "SINFO_PARTITION": "short", "SACCT_FORMAT": "User", "SCANCEL_STATE": "PENDING"},
    **{"SCANCEL_INTERACTIVE": "1", "SLURM_TIME_FORMAT": "relative", "SLURM_BITSTR_LEN": "1"},
}


@pytest.fixture
def on_cluster(cluster, tmp_path, monkeypatch):
    """Submit the program as jobs; return their submissions."""
    for name, value in {**cluster.environment, "XDG_CONFIG_HOME": str(tmp_path / "config")}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    cluster.become_idle()

    def submit(
        *names: str, entries=4, per_start=1000, profile: Cluster | None = None, after=None, at_once=None, **resources
    ) -> list[Submission]:
        folder = tmp_path if len(names) > 1 else tmp_path / names[0]
        jobs = []
        for name in names:
            run = tmp_path / name
            run.mkdir(exist_ok=True)
            arguments = [str(run), str(entries), str(per_start)]
            jobs.append(Job(name=name, folder=run, module="program", arguments=arguments, progress=run / "progress"))
        snapshot(ROOT, folder / CODE)
        shutil.copy(PROGRAM, folder / CODE)
        asked = Resources(**{"gpus_per_node": 1, **resources})
        return submit_jobs(jobs, asked, "test", profile or Cluster(retries=2), folder, after, at_once)

    return submit


def state_of(run: Path) -> JobState:
    return job_states([run])[run]


def wait_for_state(run: Path, *names: str, seconds: float = 120) -> JobState:
    """Wait until a job is in one of these states."""
    deadline = time.monotonic() + seconds
    while (state := state_of(run)).name not in names:
        log = "\n".join(path.read_text()[-2000:] for path in run.glob("*_0_log.out"))
        assert time.monotonic() < deadline, f"{state}\n{log}"
        time.sleep(0.3)
    return state


def wait_until(condition, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def ranks(run: Path) -> list[dict]:
    return [json.loads(file.read_text()) for file in (run / "ran").glob("*.json")]


def starts(run: Path) -> list[list[str]]:
    """The nodes of each start."""
    return [event["nodes"] for event in Ledger(run).events("start")]


def test_a_requeue_of_one_task_of_a_sweep_leaves_the_others_alone(on_cluster, cluster, tmp_path):
    """One needs several starts, one is cancelled while it runs, one is finished: nobody comes back but the first."""
    runs = [tmp_path / name for name in ("long", "cancelled", "short")]
    submissions = on_cluster(*(run.name for run in runs), entries=9, per_start=3)
    array = submissions[0].job_id.partition("_")[0]
    assert [one.job_id for one in submissions] == [f"{array}_{number}" for number in range(3)]
    (runs[2] / "progress").mkdir(exist_ok=True)
    for number in range(9):
        (runs[2] / "progress" / f"entry-{number:04}").touch()
    wait_until(lambda: ranks(runs[1]))
    cluster.run("scancel", f"{array}_1")
    states = [wait_for_state(run, "COMPLETED", "CANCELLED", "FAILED").name for run in runs]
    assert states == ["COMPLETED", "CANCELLED", "COMPLETED"]
    assert [len(starts(run)) for run in runs] == [3, 1, 1]
    assert Ledger(runs[1]).events("verdict")[-1]["reason"] == "cancelled"
    assert not cluster.run("squeue", "-h")


def test_a_job_submitted_from_inside_another_one_gets_what_it_asked_for(on_cluster, cluster, tmp_path, monkeypatch):
    """Two nodes with two tasks each, no time limit, no variable of the outer job, and a profile with export=NONE."""
    for name, value in HOSTILE_VARIABLES.items():
        monkeypatch.setenv(name, value)
    run = tmp_path / "run"
    [submission] = on_cluster(
        "run", entries=8, min_nodes=2, max_nodes=2, gpus_per_node=2, profile=Cluster(sbatch={"export": "NONE"})
    )
    assert state_of(run).is_active
    for name in HOSTILE_VARIABLES:
        monkeypatch.delenv(name)
    shown = cluster.run("scontrol", "show", "job", submission.job_id)
    assert "TimeLimit=UNLIMITED" in shown and "Requeue=1" in shown and "NumNodes=2" in shown
    wait_for_state(run, "COMPLETED")
    assert sorted((rank["rank"], rank["world"]) for rank in ranks(run)) == [(number, 4) for number in range(4)]
    assert len({rank["node"] for rank in ranks(run)}) == 2


def test_other_numbers_of_ranks_than_planned_are_refused(on_cluster, tmp_path):
    """Whatever in a profile makes srun start other ranks, it cannot make a training with another cut."""
    run = tmp_path / "run"
    on_cluster("run", gpus_per_node=2, profile=Cluster(setup=('srun() { command srun "${@/--ntasks*/-n1}"; }',)))
    state = wait_for_state(run, "FAILED")
    assert "SLURM started 1 ranks instead of 2 (1 nodes × 2)" in state.note and not (run / "ran").exists()


def test_a_slurm_that_does_not_answer_is_no_reason_to_submit_again(
    on_cluster, cluster, tmp_path, monkeypatch, bigbatch
):
    """The state has a word of its own; cancel, resume and submit refuse."""
    monkeypatch.setattr(commands, "_PAUSE", 0.1)
    monkeypatch.setattr(commands, "_TRIES", 2)
    run = tmp_path / "runs" / "a run"
    job_folder = run / "job"
    job_folder.mkdir(parents=True)
    on_cluster("runs/a run/job", entries=1000, profile=Cluster(sbatch={"begin": "now+1hour"}))
    assert state_of(job_folder).name == "PENDING"
    elsewhere = tmp_path / "slurm.conf"
    text = Path(cluster.environment["SLURM_CONF"]).read_text()
    elsewhere.write_text(
        text.replace(
            f"SlurmctldPort={cluster.port}\n", f"SlurmctldPort={cluster.port + 99}\nMessageTimeout=1\n"
        ).replace("MessageTimeout=10\n", "")
    )
    monkeypatch.setenv("SLURM_CONF", str(elsewhere))
    state = state_of(job_folder)
    assert state.name == "NO_ANSWER" and "SLURM did not answer (" in state.note
    for command in ("cancel", "resume"):
        code, _, errors = bigbatch(command, run)
        assert (
            code == 2 and "may still be in the queue: SLURM did not answer" in errors and len(errors.splitlines()) == 1
        )


def test_a_suspended_job_is_active(on_cluster, cluster, tmp_path):
    run = tmp_path / "run"
    [submission] = on_cluster("run", entries=20)
    wait_until(lambda: ranks(run))
    for stop, go in (
        (("scontrol", "suspend"), ("scontrol", "resume")),
        (("scancel", "-s", "STOP"), ("scancel", "-s", "CONT")),
    ):
        cluster.run(*stop, submission.job_id)
        wait_until(lambda: state_of(run).name != "RUNNING")
        assert state_of(run).is_active, state_of(run)
        cluster.run(*go, submission.job_id)
    wait_for_state(run, "COMPLETED")
    assert len(starts(run)) == 1


def python_that_fails_on(node: str, folder: Path) -> str:
    """A Python that does not run on one node."""
    file = folder / "python"
    file.write_text(f'#!/bin/sh\n[ "$SLURMD_NODENAME" != {node} ] || exit 127\nexec {sys.executable} "$@"\n')
    file.chmod(0o755)
    return str(file)


@pytest.mark.parametrize("which", [1, 0], ids=["second", "first"])
def test_a_node_without_python_is_named_and_excluded(on_cluster, cluster, tmp_path, which):
    bad = cluster.nodes[which]
    run = tmp_path / "run"
    on_cluster("run", min_nodes=2, max_nodes=2, profile=Cluster(python=python_that_fails_on(bad, tmp_path), retries=1))
    wait_for_state(run, "COMPLETED")
    [first] = [event for event in Ledger(run).events("verdict") if event["exclude"]]
    assert first["exclude"] == [bad] and f"node {bad} cannot run" in first["reason"]
    assert starts(run)[-1] == [node for node in cluster.nodes if node != bad]


def test_an_exclusion_that_leaves_too_few_nodes_ends_the_job(on_cluster, cluster, tmp_path):
    bad = cluster.nodes[2]
    run = tmp_path / "run"
    on_cluster("run", min_nodes=3, max_nodes=3, profile=Cluster(python=python_that_fails_on(bad, tmp_path)))
    state = wait_for_state(run, "FAILED")
    assert f"without {bad} the partition has 2 nodes and the job needs 3" in state.note


ENDS = {  # a profile whose job ends before its ranks have started, and what the record must say
    "setup ends the script": (Cluster(setup=("exit 3",), retries=0), "before any rank started, ended with exit code 3"),
    "setup fails under set -e": (
        Cluster(setup=("set -euo pipefail", "false"), retries=0),
        "before any rank started, ended with exit code 1",
    ),
    "a container hides SLURM's variables": (
        Cluster(python=f"env -i PATH={os.environ['PATH']} {sys.executable}", retries=0),
        "RuntimeError: Could not figure out which environment the job is",
    ),
}


def test_every_end_of_the_batch_script_leaves_a_record(on_cluster, tmp_path):
    for number, (profile, _) in enumerate(ENDS.values()):
        on_cluster(f"run{number}", profile=profile)
    for number, (_, part) in enumerate(ENDS.values()):
        state = wait_for_state(tmp_path / f"run{number}", "FAILED")
        assert part in state.note, state


def test_signals_to_the_batch_shell_stop_the_job_and_it_comes_back(on_cluster, cluster, tmp_path):
    """TERM saves and requeues, whoever sent it; scancel ends the job for good."""
    run = tmp_path / "run"
    [submission] = on_cluster("run", entries=30)
    for restart in range(2):
        wait_until(lambda count=restart: len(starts(run)) == count + 1 and len(ranks(run)) == count + 1)
        cluster.run("scancel", "--batch", "-s", ("TERM", "USR2")[restart], submission.job_id)
    wait_until(lambda: len(ranks(run)) == 3)
    assert [event["saved"] for event in Ledger(run).events("stopped")] == [True, True]
    cancel_job(submission)
    wait_for_state(run, "CANCELLED")
    time.sleep(6)  # as long as a requeue takes
    assert len(starts(run)) == 3 and Ledger(run).events("verdict")[-1]["reason"] == "cancelled"


def test_a_chain_says_why_its_second_step_was_cancelled(on_cluster, tmp_path):
    [first] = on_cluster("first", profile=Cluster(setup=("exit 3",), retries=0))
    on_cluster("second", after=first.job_id)
    state = wait_for_state(tmp_path / "second", "CANCELLED")
    assert state.note == f"job {first.job_id}, which had to succeed first, did not"


def test_srun_is_a_launcher_of_trainings(cluster, digits, monkeypatch, tmp_path):  # noqa: F811
    """Four ranks of an allocation train as one run; nothing but srun has started them."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    command = [sys.executable, "-m", "launcher", "train", "demo", *SHORT, "--data", str(digits), "--workers", "0"]
    output = cluster.run("srun", "-N2", "--ntasks-per-node=2", f"--chdir={tmp_path}", *command)
    assert "64 = 4 processes × 16 × 1 accumulation step" in output and "finished: runs/demo" in output
    replay = [sys.executable, "-m", "launcher", "replay", "runs/demo", "--step", "3", "--workers", "0"]
    replayed = cluster.run("srun", "-N1", "-n2", f"--chdir={tmp_path}", *replay, "--cut", "here")
    assert replayed.count("64 = 2 processes × 32") == 2 and "equal in every step" in replayed, replayed


def test_srun_starts_ranks_without_another_launcher(cluster, monkeypatch, tmp_path):
    """`srun bigbatch train` with one task per GPU; other numbers of tasks are told what to type."""
    script = (
        "import os, sys; sys.path.insert(0, sys.argv[1]); from slurm.srun_step import step_variables as s; "
        "v = s(os.environ); names = ('RANK', 'WORLD_SIZE', 'LOCAL_RANK', 'LOCAL_WORLD_SIZE', 'MASTER_ADDR'); "
        "print(*map(v.get, names))"
    )
    command = [sys.executable, "-c", script, str(ROOT)]
    found = cluster.run("srun", "-N2", "--ntasks-per-node=2", "--gpus-per-node=2", *command).splitlines()
    assert sorted(line[:7] for line in found) == ["0 4 0 2", "1 4 1 2", "2 4 0 2", "3 4 1 2"]
    assert len({line.split()[4] for line in found}) == 1
    alone = cluster.run("srun", "-N1", "-n1", *command)
    assert alone.split() == ["None"] * 5
    done = subprocess.run(
        ["srun", "-N1", "-n3", "--gpus-per-node=2", *command], env=cluster._env(), capture_output=True, text=True
    )
    assert done.returncode and "use `srun --ntasks-per-node=2`, one task per GPU" in done.stderr
