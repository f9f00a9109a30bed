"""The same program without SLURM: `--cluster local`, submitit's local executor."""

import os
import signal

import pytest

from slurm.ledger import Ledger
from tests.launcher.training.test_trajectory import assert_same_curve
from tests.slurm.cluster import processes_with
from tests.slurm.conftest import SHORT, job_id, log_of, row, wait_for, wait_for_end

pytestmark = pytest.mark.slow


def test_a_local_job_survives_the_death_of_a_rank_and_gives_the_same_curve(local, digits, reference, tmp_path):
    run = tmp_path / "it's a $(touch pwned) run"
    local(
        "submit",
        "demo",
        *SHORT,
        "--cluster",
        "local",
        "--gpus-per-node",
        2,
        "--data",
        digits,
        "--workers",
        0,
        "--run-dir",
        run,
    )
    wait_for(run, lambda found: processes_with({"RANK": "1", "SUBMITIT_LOCAL_JOB_ID": job_id(run)}))
    os.kill(processes_with({"RANK": "1", "SUBMITIT_LOCAL_JOB_ID": job_id(run)})[0], signal.SIGKILL)
    found = wait_for_end(run)
    assert (found.restarts, found.step) == (1, 22)
    assert "killed by signal 9" in Ledger(run / "job").events("verdict")[0]["reason"]
    assert "64 = 2 processes × 32 × 1 accumulation step" in log_of(run)
    assert_same_curve(run, reference, steps=22)
    assert not list(tmp_path.rglob("pwned"))


def test_a_cancelled_local_job_ends_and_goes_on_when_resumed(local, digits, tmp_path):
    run = tmp_path / "run"
    local("submit", "demo", *SHORT, "--cluster", "local", "--data", digits, "--workers", 0, "--run-dir", run)
    assert row(run).state == "RUNNING"
    local("cancel", run)
    wait_for(run, lambda found: found.state == "CANCELLED")
    assert not processes_with({"SUBMITIT_LOCAL_JOB_ID": job_id(run)})
    local("resume", run)
    assert wait_for_end(run).step == 22


def test_a_dry_run_does_not_speak_of_slurm(local, digits):
    shown = local("submit", "demo", *SHORT, "--cluster", "local", "--data", digits, "--dry-run")
    assert "nothing was submitted" in shown and "limit none" in shown
    assert not any(word in shown for word in ("partition", "requeue", "SBATCH"))


def test_a_dry_run_says_what_an_audit_costs(local, digits):
    options = ("--cluster", "local", "--gpus-per-node", 2, "--audit", 5, "--data", digits, "--dry-run")
    assert "# audit      every 5 steps, which takes about 20.0% more time" in local("submit", "demo", *SHORT, *options)


@pytest.fixture
def local(command):
    """Run the command, successfully; return what it printed."""

    def run(*arguments) -> str:
        code, output, errors = command(*arguments)
        assert code == 0, errors
        return output

    return run
