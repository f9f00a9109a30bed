"""Whether a job starts again: decided from what its ranks left, without a cluster."""

import json
import os
import time

import pytest

from launcher.runs.runs_table import run_statuses
from slurm.job import BAD_NODE, USER_ERROR, Job, Resources
from slurm.ledger import Attempt, Failure, Ledger
from slurm.state import SlurmState, resolve_state
from slurm.verdict import decide_requeue, main, write_jobs


@pytest.fixture
def ledger(tmp_path) -> Ledger:
    return Ledger(tmp_path)


def attempt(restart: int, ledger: Ledger, progress: str = "") -> Attempt:
    """Start number `restart` of job 7, which found that progress."""
    started = Attempt("7", restart)
    ledger.claim(started)
    ledger.log("start", started, nodes=["n1", "n2"], tasks=2, progress=progress)
    return started


def died(rank: int, code: int = 1, message: str = "RuntimeError: lost") -> Failure:
    return Failure(time.time(), rank, f"n{rank}", code, message)


def test_a_finished_job_ends(ledger):
    first = attempt(0, ledger)
    ledger.log("finished", first)
    assert decide_requeue(ledger, first, 0, "step-2", retries=3).requeue is False


def test_a_job_that_stopped_goes_on_as_often_as_it_gains_something(ledger):
    for restart in range(20):
        now = attempt(restart, ledger, f"step-{restart:02}")
        ledger.log("stopped", now, signal="SIGUSR2", saved=True)
        assert decide_requeue(ledger, now, 0, f"step-{restart + 1:02}", retries=1).requeue


def test_failures_without_progress_are_tried_again_but_not_for_ever(ledger):
    for restart, again in enumerate([True, True, False]):
        now = attempt(restart, ledger, "step-1")
        ledger.record_failure(now, died(1))
        verdict = decide_requeue(ledger, now, 1, "step-1", retries=2)
        assert verdict.requeue is again
    assert "rank 1 on n1: RuntimeError: lost; given up: 3 starts" in verdict.reason and verdict.code == 1


def test_progress_and_a_new_submission_give_all_retries_back(ledger):
    for restart, progress in enumerate(["step-1", "step-1", "step-2", "step-2"]):  # the third start gained a step
        now = attempt(restart, ledger, "step-1" if restart < 3 else "step-2")
        ledger.record_failure(now, died(0))
        assert decide_requeue(ledger, now, 1, progress, retries=2).requeue
    ledger.log("submit")
    assert decide_requeue(ledger, attempt(4, ledger, "step-2"), 1, "step-2", retries=0).requeue is False
    ledger.log("submit")
    assert decide_requeue(ledger, attempt(5, ledger, "step-2"), 1, "step-2", retries=1).requeue


def test_a_program_that_refuses_is_not_started_again(ledger):
    now = attempt(0, ledger)
    ledger.record_failure(now, died(1, USER_ERROR, ""))
    ledger.record_failure(now, died(0, USER_ERROR, "error: the loss of step 3 is nan"))
    verdict = decide_requeue(ledger, now, 2, "step-9", retries=9)
    assert (verdict.requeue, verdict.code) == (False, USER_ERROR) and "the loss of step 3" in verdict.reason


def test_the_first_failure_counts_not_those_it_caused(ledger):
    """Killed without a word, and a peer that complained later."""
    now = attempt(0, ledger)
    ledger.record_failure(now, Failure(100.0, 3, "n2", -9, ""))
    ledger.record_failure(now, Failure(101.0, 0, "n1", 1, "RuntimeError: Connection closed by peer"))
    ledger.record_failure(now, Failure(99.0, 1, "n1", 1, ""))
    assert decide_requeue(ledger, now, 137, "", retries=1).reason.startswith("rank 3 on n2: killed by signal 9")


def test_bad_nodes_are_named_with_those_of_before_and_of_the_profile(ledger, tmp_path):
    answers = []
    job = Job(name="x", folder=tmp_path, module="x", arguments=[], progress=tmp_path / "none")
    write_jobs(tmp_path, [job], retries=3, exclude="broken[1-3]", resources=Resources())
    for restart, rank in ((0, 1), (1, 2)):
        now = attempt(restart, ledger)
        ledger.record_failure(now, died(0, BAD_NODE, ""))
        ledger.record_failure(now, died(rank, BAD_NODE, f"error: node n{rank} cannot be used"))
        answers.append(main(tmp_path, "7", restart, 76, "", "", []))
    assert answers == ["requeue:broken[1-3],n1", "requeue:broken[1-3],n1,n2"]


def test_a_start_that_another_one_has_replaced_decides_nothing(ledger, tmp_path):
    job = Job(name="x", folder=tmp_path, module="x", arguments=[], progress=tmp_path / "none")
    write_jobs(tmp_path, [job], retries=3, exclude=None, resources=Resources())
    attempt(1, ledger)
    assert main(tmp_path, "7", 0, 1, "", "", []) == "end:1"
    assert not ledger.events("verdict")


STATES = {  # what SLURM says, what the ledger has, what is shown
    "waits": (SlurmState("PENDING", "Priority", None), [], ("PENDING", "Priority")),
    "waits again": (SlurmState("PENDING", "BeginTime", None), ["start"], ("REQUEUED", "BeginTime")),
    "runs": (SlurmState("RUNNING", "", 2), ["start", "alive"], ("RUNNING", "")),
    "says it runs but has no heartbeat": (
        SlurmState("RUNNING", "", 2),
        ["start", "silent"],
        ("RUNNING", "no heartbeat for 60 min"),
    ),
    "timed out": (SlurmState("TIMEOUT", "TimeLimit", None), ["start"], ("TIMEOUT", "")),
    "failed": (SlurmState("FAILED", "NonZeroExitCode", None), ["start", "verdict"], ("FAILED", "a reason")),
    "forgotten, finished": (None, ["start", "finished"], ("COMPLETED", "")),
    "forgotten, cancelled": (None, ["start", "stopped", "cancel"], ("CANCELLED", "")),
    "forgotten, failed": (None, ["start", "verdict"], ("FAILED", "a reason")),
    "forgotten, no end": (
        None,
        ["start", "silent"],
        ("LOST", "SLURM no longer knows it, and its last heartbeat was 60 min ago"),
    ),
    "forgotten, no start": (None, [], ("LOST", "SLURM no longer knows it, and it never started")),
}


@pytest.mark.parametrize("case", STATES)
def test_states_come_from_slurm_and_from_what_the_job_left(ledger, case):
    queued, happened, shown = STATES[case]
    ledger.log("submit")
    for event in happened:
        if event == "start":
            attempt(0, ledger)
        elif event in ("alive", "silent"):
            ledger.heartbeat()
            if event == "silent":
                os.utime(ledger.alive_file, (time.time() - 3600,) * 2)
        elif event == "verdict":
            ledger.log("verdict", Attempt("7", 0), requeue=False, reason="a reason", gained=False, exclude=[])
        else:
            ledger.log(event, Attempt("7", 0))
    state = resolve_state(ledger, "7", queued)
    assert (state.name, state.note) == shown


def test_a_torn_line_of_the_ledger_is_left_out(ledger):
    attempt(0, ledger)
    with ledger.events_file.open("a") as file:
        file.write(json.dumps({"event": "finished"})[:7])
    assert [event["event"] for event in ledger.events()] == ["start"]


def test_a_run_that_cannot_be_read_is_a_row_of_its_own(tmp_path):
    for name, text in (("broken", "name: x\nfuture: 1\n"), ("whole", "name: x\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "recipe.yaml").write_text(text)
    broken, whole = run_statuses(tmp_path)
    assert broken.state == "UNREADABLE" and "unknown key 'future'" in broken.note
    assert (whole.recipe, whole.state) == ("x", "STOPPED")
