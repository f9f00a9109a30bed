"""Training on a real SLURM cluster: the curve is that of one process, whatever happens to the job."""

import os
import re
import signal
import threading
from pathlib import Path

import pytest
from safetensors.torch import load_file

from launcher.runs.run_directory import RunDirectory
from slurm.ledger import Ledger
from tests.launcher.comparison import losses
from tests.launcher.training.test_trajectory import assert_same_curve
from tests.slurm.cluster import processes_with
from tests.slurm.conftest import SHORT, job_id, log_of, row, slow_down, wait_for, wait_for_end

HOSTILE = 'it\'s "a" $(touch pwned) `touch pwned` ; touch pwned\n#SBATCH --nodes=9\ntouch pwned'


def trains_after(run: Path, restarts: int):
    """Wait until the run has been started again so often and has done a step since."""
    return wait_for(run, lambda found: found.restarts == restarts and _has_stepped(run, restarts))


def _has_stepped(run: Path, restarts: int) -> bool:
    starts = Ledger(run / "job").events("start")
    steps = [event for event in RunDirectory(run).metrics.events() if event["event"] == "step"]
    return bool(steps) and steps[-1]["time"] > starts[restarts]["time"]


def test_two_nodes_by_two_tasks_give_the_curve_of_one_process(submitted, bigbatch, reference, tmp_path):
    """And a hostile path reaches the job as data."""
    run = tmp_path / HOSTILE
    submitted("demo", *SHORT, "--nodes", 2, "--gpus-per-node", 2, "--time", 10, "--run-dir", run)
    found = wait_for_end(run)
    assert_same_curve(run, reference, steps=22)
    assert (found.nodes, found.step, found.restarts) == (2, 22, 0)
    assert "64 = 4 processes × 16 × 1 accumulation step" in log_of(run)
    assert re.search(r"preflight: 4 processes on 2 nodes, all-reduce [\d.]+ GB/s", log_of(run))
    assert load_file(run / "weights.safetensors")
    assert not list(tmp_path.rglob("pwned"))
    code, output, _ = bigbatch("logs", run, "--rank", 3)
    assert code == 0 and "global_rank=3(4)" in output


def test_a_run_survives_everything(submitted, cluster, reference, tmp_path):
    """Preempted, out of time, requeued, a rank killed, a node lost, on 3 nodes, then 2, then 1: the same curve."""
    run = tmp_path / "run"
    (tmp_path / "clusters.toml").write_text("[test.sbatch]\nhold = true\n")
    submitted("demo", *SHORT, "--nodes", "1-3", "--time", 10, "--run-dir", run)
    slow = slow_down(run, cluster)
    ledger = Ledger(run / "job")
    trains_after(run, restarts=0)
    urgent = cluster.occupy_a_node()
    wait_for(run, lambda found: found.state == "REQUEUED")
    trains_after(run, restarts=1)

    slow.write_text("8")  # SLURM looks at time limits every half minute
    cluster.run("scontrol", "update", f"JobId={job_id(run)}", "TimeLimit=1")
    wait_for(run, lambda found: ledger.events("stopped")[1:] and found.state == "REQUEUED")
    assert (ledger.events("stopped")[1]["signal"], ledger.events("stopped")[1]["saved"]) == ("SIGUSR2", True)
    slow.write_text("2")
    cluster.run("scontrol", "update", f"JobId={job_id(run)}", "TimeLimit=10")

    trains_after(run, restarts=2)
    cluster.run("scontrol", "requeue", job_id(run))
    trains_after(run, restarts=3)
    os.kill(processes_with({"RANK": "1", "SLURM_JOB_ID": job_id(run)})[0], signal.SIGKILL)
    trains_after(run, restarts=4)
    assert (
        "rank 1 on" in ledger.events("verdict")[-1]["reason"]
        and "killed by signal 9" in ledger.events("verdict")[-1]["reason"]
    )

    slow.write_text("6")  # SLURM misses a node after some twenty seconds
    lost = ledger.events("start")[-1]["nodes"][-1]
    cluster.kill_node_daemon(lost)
    trains_after(run, restarts=5)
    slow.unlink()
    found = wait_for_end(run)
    cluster.start_node(lost)
    cluster.run("scancel", urgent)

    assert_same_curve(run, reference, steps=22)
    assert (found.restarts, found.step) == (5, 22)
    starts = ledger.events("start")
    assert [len(start["nodes"]) for start in starts] == [3, 2, 2, 2, 2, 1]
    assert lost not in starts[-1]["nodes"]


def test_a_chain_starts_from_the_exported_weights_and_a_bad_node_is_left_out(submitted, cluster, tmp_path):
    """Shards are staged to each node's own disk; the disk of one node is broken."""
    (tmp_path / "disks").mkdir()
    whole, broken, unused = cluster.nodes
    (tmp_path / "disks" / broken).write_text("not a folder")
    (tmp_path / "clusters.toml").write_text(
        f'[test]\nexclude = "{unused}"\nstage = "{tmp_path}/disks/$SLURMD_NODENAME"\n'
    )
    first, second = tmp_path / "runs" / "pretrain", tmp_path / "runs" / "it's $(touch pwned)"
    submitted(
        "demo", *SHORT, "name=pretrain", "--nodes", "1-2", "--time", 10,
        "demo", *SHORT, f"name={second.name}", "data.name='$(touch pwned)\n'", "optimizer.lr=1e-3",
    )  # fmt: skip
    wait_for(second, lambda found: (found.state, found.note) == ("PENDING", "Dependency"))
    wait_for(first, lambda found: found.restarts == 1)
    (tmp_path / "disks" / broken).unlink()  # repaired in time for the second job
    found = wait_for_end(first)
    starts = Ledger(first / "job").events("start")
    assert found.restarts == 1 and [start["nodes"] for start in starts] == [[whole, broken], [whole]]
    assert (
        f"rank 1 on {broken}: error: node {broken} cannot be used"
        in Ledger(first / "job").events("verdict")[0]["reason"]
    )
    assert list((tmp_path / "disks" / whole).glob("bigbatch-*/manifest.json"))
    assert wait_for_end(second).restarts == 0
    assert RunDirectory(second).recipe().model.weights == str(first / "weights.safetensors")
    assert losses(second)[0] < losses(first)[0] - 0.1  # a head that knows nothing has ln 10 = 2.30
    assert RunDirectory(first).recipe().data.path == RunDirectory(second).recipe().data.path
    assert not list(tmp_path.rglob("pwned"))


def test_a_sweep_is_an_array_of_runs(submitted, bigbatch, tmp_path):
    output = submitted("demo", *SHORT, "--array", "optimizer.lr=1e-3,2e-3,4e-3", "--time", 10)
    runs = sorted((tmp_path / "runs" / "demo-optimizer.lr").glob("optimizer*"))
    assert [run.name for run in runs] == ["optimizer.lr=1e-3", "optimizer.lr=2e-3", "optimizer.lr=4e-3"]
    assert len({job_id(run).partition("_")[0] for run in runs}) == 1 and output.count("submitted demo") == 3
    for run in runs:
        wait_for_end(run)
    assert [RunDirectory(run).recipe().optimizer.lr for run in runs] == [1e-3, 2e-3, 4e-3]
    assert len({losses(run)[-1] for run in runs}) == 3
    code, output, _ = bigbatch("runs")
    assert code == 0 and output.count("COMPLETED") == 3 and output.count("22/22") == 3


def test_a_run_that_fails_says_why_and_does_not_come_back(submitted, bigbatch, tmp_path):
    """A loss that is not finite would be so again; a bug in the code is tried again, but not for ever."""
    nan, bug = tmp_path / "nan", tmp_path / "bug"
    (tmp_path / "clusters.toml").write_text('[test]\nretries = 1\n[test.sbatch]\nbegin = "now+2"\n')
    submitted("demo", *SHORT, "optimizer.lr=1e30", "--nodes", 2, "--time", 10, "--run-dir", nan)
    submitted("demo", *SHORT, "--nodes", 2, "--time", 10, "--run-dir", bug)
    code = bug / "job" / "code" / "launcher" / "job.py"  # the snapshot is what runs, so this is where a bug has to be
    code.write_text(
        "import os\nif os.environ['RANK'] == '1': raise RuntimeError('a bug of rank 1')\n"
        "else: import time; time.sleep(600)\n"
    )
    for run in (nan, bug):
        with pytest.raises(AssertionError, match="state='FAILED'"):
            wait_for_end(run)
    assert row(nan).restarts == 0 and "the loss of step" in row(nan).note
    assert row(bug).restarts == 1 and "RuntimeError: a bug of rank 1; given up: 2 starts" in row(bug).note
    output = bigbatch("logs", nan)[1]
    assert output.startswith("first failure: rank ") and "the loss of step" in output.splitlines()[0]
    assert "rank 1 on" in bigbatch("logs", bug)[1].splitlines()[0]


def test_waiting_cancelled_resumed(submitted, bigbatch, cluster, tmp_path, monkeypatch):
    """States are right also where SLURM keeps no accounts and has forgotten the job."""
    run = tmp_path / "run"
    (tmp_path / "clusters.toml").write_text('[test.sbatch]\nbegin = "now+1hour"\n')
    submitted("demo", *SHORT, "--run-dir", run)
    assert (row(run).state, row(run).note) == ("PENDING", "BeginTime")
    code, _, errors = bigbatch(
        "submit", "demo", *SHORT, "--data", RunDirectory(run / "job").recipe().data.path, "--run-dir", run
    )
    assert code == 2 and "bigbatch cancel" in errors
    cluster.run("scontrol", "hold", job_id(run))
    code, output, _ = bigbatch("resume", run)
    assert code == 0 and f"released job {job_id(run)}, which was held in the queue (JobHeld" in output
    assert bigbatch("cancel", run)[0] == 0
    assert row(run).state == "CANCELLED"
    code, _, errors = bigbatch("cancel", run)
    assert code == 2 and "CANCELLED" in errors
    first = job_id(run)
    assert bigbatch("resume", run)[0] == 0
    assert job_id(run) != first and row(run).state == "PENDING"
    bigbatch("cancel", run)
    monkeypatch.setenv("PATH", "/usr/sbin")  # no squeue, no sacct
    assert row(run).state == "CANCELLED"


def test_a_chain_that_is_resumed_and_code_that_is_gone_or_old(submitted, bigbatch, cluster, tmp_path):
    """The second step waits for the first where that is in the queue, and is refused where nobody makes its weights."""
    (tmp_path / "clusters.toml").write_text("[test.sbatch]\nhold = true\n")
    submitted("demo", *SHORT, "name=a", "demo", *SHORT, "name=b")
    first, second = tmp_path / "runs" / "a", tmp_path / "runs" / "b"
    for run in (second, first):
        assert bigbatch("cancel", run)[0] == 0
    code, _, errors = bigbatch("resume", second)
    assert code == 2 and f"weights.safetensors: `bigbatch resume {first}` makes them" in errors
    assert bigbatch("resume", first)[0] == 0
    code, output, _ = bigbatch("resume", second)
    assert code == 0 and f", after job {job_id(first)}: " in output
    assert f"afterok:{job_id(first)}" in cluster.run("scontrol", "show", "job", job_id(second))
    assert bigbatch("cancel", second)[0] == bigbatch("cancel", first)[0] == 0

    (first / "job" / "code" / "protocol").unlink()  # as version 0.1.0 left it
    assert "is replaced by that of today" in bigbatch("resume", first)[1]
    assert bigbatch("cancel", first)[0] == 0
    events = (first / "job" / "events.jsonl").read_text()
    (first / "job" / "code").rename(first / "job" / "gone")
    code, _, errors = bigbatch("resume", first)
    assert code == 2 and "the code that the run was submitted with is gone" in errors and len(errors.splitlines()) == 1
    assert (first / "job" / "events.jsonl").read_text() == events


def test_following_the_log_of_a_waiting_job_says_that_it_waits(submitted, cluster, bigbatch, tmp_path, monkeypatch):
    from launcher.jobs import logs

    monkeypatch.setattr(logs, "_STATE_INTERVAL", 1.0)
    (tmp_path / "clusters.toml").write_text("[test.sbatch]\nhold = true\n")
    run = tmp_path / "a run"
    output = submitted("demo", *SHORT, "--run-dir", run)
    assert f"watch with: bigbatch runs {tmp_path}" in output
    timer = threading.Timer(3, lambda: cluster.run("scancel", job_id(run)))
    timer.start()
    code, _, errors = bigbatch("logs", run, "-f")
    assert code == 0 and f"job {job_id(run)} is PENDING (JobHeldUser): waiting for it to print" in errors
