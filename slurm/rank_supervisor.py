"""Runs on every rank of a job: starts the program and supervises it.

The program cannot supervise itself: it may hang in a collective, be killed because memory ran out, or belong to a start
that SLURM has replaced. This small process beside it forwards SLURM's signals, records how the program ended, and kills
it when necessary.
"""

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import submitit

from data.cpus import usable_cpus
from slurm.job import BAD_NODE, FINISHED, STOPPED, USER_ERROR, Job
from slurm.ledger import Attempt, Failure, Ledger
from slurm.log_lines import last_error_line
from slurm.srun_step import rendezvous_port
from slurm.verdict import decide_requeue, newest_entry

_LEDGER_INTERVAL = 3.0  # seconds between checks in the ledger of the job's owner and of failures on other ranks
_PEER_GRACE = 10.0  # seconds that a rank has to end by itself after another one failed
_FRESH_HEARTBEAT = 60.0  # seconds for which ranks of an earlier start may still be alive
_LOCAL_REQUEUE = 144  # the exit code by which submitit's local executor starts a job again


@dataclass(frozen=True)
class RankContext:
    """One rank of a job: its attempt, its number, its node and its log."""

    attempt: Attempt
    rank: int
    world_size: int
    local_rank: int
    node_count: int
    node: str
    nodes: list[str]
    log: Path
    local: bool  # without SLURM, by submitit's local executor

    @classmethod
    def of_this_process(cls, ledger: Ledger) -> "RankContext":
        """Return the context of this process, from the variables of SLURM or of submitit's local executor."""
        env = submitit.JobEnvironment()
        local = env.cluster == "local"
        restart = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        if local:  # the executor does not count restarts; the ledger does
            restart = sum(event["job"] == env.job_id and event["requeue"] for event in ledger.events("verdict"))
        return cls(
            attempt=Attempt(env.job_id, restart),
            rank=env.global_rank,
            world_size=env.num_tasks,
            local_rank=env.local_rank,
            node_count=env.num_nodes,
            node=os.environ.get("SLURMD_NODENAME", socket.gethostname()),
            nodes=["127.0.0.1"] if local else list(env.hostnames),
            log=env.paths.stdout,
            local=local,
        )

    def environment(self) -> dict[str, str]:
        """Return the program's environment, with the variables that torchrun would set for the ranks."""
        per_node = self.world_size // self.node_count
        threads = usable_cpus() // (per_node if self.local else 1)
        number = int(re.sub(r"\D", "", self.attempt.job_id)) * 64 + self.attempt.restart
        return {
            "OMP_NUM_THREADS": os.environ.get("SLURM_CPUS_PER_TASK", str(max(1, threads))),
            **os.environ,
            "MASTER_ADDR": self.nodes[0],
            "MASTER_PORT": str(rendezvous_port(number)),
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(per_node),
        }


class RankTask:
    """The callable that submitit pickles for every rank. It runs with the code of the job's snapshot.

    Args:
        grace: seconds that the program has to save and end after it is told to.
        retries: as in `slurm.verdict`; used only on submitit's local executor, where no batch script decides.
        tasks_per_node: as requested; another number of ranks would cut the batch differently from the plan.
    """

    def __init__(self, job: Job, grace: float, retries: int, tasks_per_node: int):
        self.job, self.grace, self.retries, self.tasks_per_node = job, grace, retries, tasks_per_node

    def __call__(self) -> None:
        sys.exit(RankSupervisor(self).run())


class RankSupervisor:
    """Runs the program of one rank from its start to the record of its end."""

    def __init__(self, task: RankTask):
        self.task, self.job = task, task.job
        self.ledger = Ledger(self.job.folder)
        self.context = RankContext.of_this_process(self.ledger)
        self.program: subprocess.Popen[bytes] | None = None
        self.stop_signal: str | None = None  # name of the signal that told the job to stop
        self.kill_at: float | None = None  # monotonic time at which a program that has not ended is killed
        self.seen_as_owner = False
        self.peer_failed = False

    def run(self) -> int:
        """Run the program and return the exit code of this rank."""
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._stop)
        context, expected = self.context, self.context.node_count * self.task.tasks_per_node
        if context.world_size != expected:
            message = (
                f"error: SLURM started {context.world_size} ranks instead of {expected} "
                f"({context.node_count} nodes × {self.task.tasks_per_node}): look for SLURM_ variables in the profile"
            )
            print(message, file=sys.stderr)
            self.ledger.record_failure(
                context.attempt, Failure(time.time(), context.rank, context.node, USER_ERROR, message)
            )
            return USER_ERROR
        if context.rank == 0:
            self._take_over()
        code = STOPPED if self.stop_signal else self._run_program()
        if code is None:
            print("another start has taken this job over: this one ends", file=sys.stderr)
            return 1
        return self._record_end(code)

    def _stop(self, number: int, _frame: FrameType | None) -> None:
        self.stop_signal = self.stop_signal or signal.Signals(number).name
        if self.kill_at is None:
            self.kill_at = time.monotonic() + self.task.grace
        if self.program is not None and self.program.poll() is None:
            self.program.terminate()

    def _take_over(self) -> None:
        """Claim the job. If ranks of an earlier start may still run on a lost node, wait until they see the claim."""
        ledger, attempt, before = self.ledger, self.context.attempt, self.ledger.owner()
        ledger.claim(attempt)
        if before and before != attempt and not ledger.events_of(before, "finished", "stopped", "verdict"):
            silent = ledger.seconds_since_heartbeat()
            if silent is not None and silent < _FRESH_HEARTBEAT:
                time.sleep(_LEDGER_INTERVAL + 2)
        ledger.heartbeat()
        progress = newest_entry(self.job.progress)
        ledger.log("start", attempt, nodes=self.context.nodes, tasks=self.context.world_size, progress=progress)

    def _run_program(self) -> int | None:
        """Return the program's exit code; None if this start no longer owns the job."""
        self.log_start = self.context.log.stat().st_size if self.context.log.exists() else 0
        self.program = subprocess.Popen(
            [sys.executable, "-m", self.job.module, *self.job.arguments],
            env=self.context.environment(),
            # SLURM sends its warning to every process of a step, and USR2 would end the program at once.
            preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
        )
        if self.stop_signal:  # the signal came before there was a program to pass it to
            self.program.terminate()
        looked = time.monotonic()
        while True:
            try:
                return self.program.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                now = time.monotonic()
            if self.kill_at and now > self.kill_at:
                self.program.kill()
            if now - looked >= _LEDGER_INTERVAL:
                looked = now
                if self._is_superseded():
                    self.program.kill()
                    self.program.wait()
                    return None
                with contextlib.suppress(OSError):  # a file system that fails for a moment must not end the rank
                    self._end_after_failed_peer(now)
                    if self.context.rank == 0:
                        self.ledger.heartbeat()

    def _is_superseded(self) -> bool:
        """Return whether a later start has claimed the job.

        The owner may also be an earlier start, as long as rank 0 of this one has not claimed the job.
        """
        owner, own = self.ledger.owner(), self.context.attempt
        self.seen_as_owner = self.seen_as_owner or owner == own
        if owner is None or owner == own:
            return False
        return self.seen_as_owner or (owner.job_id == own.job_id and owner.restart > own.restart)

    def _end_after_failed_peer(self, now: float) -> None:
        """If another rank has failed, kill the program soon: it may wait for that rank in a collective for ever."""
        if not self.peer_failed and self.ledger.failures(self.context.attempt):
            self.peer_failed = True
            self.kill_at = self.kill_at or now + _PEER_GRACE

    def _record_end(self, code: int) -> int:
        """Record how the program ended, and return the exit code of this rank."""
        ledger, context = self.ledger, self.context
        if code == FINISHED:
            if context.rank == 0:
                ledger.log("finished", context.attempt)
        elif code in (STOPPED, -signal.SIGTERM) or (self.stop_signal and code not in (USER_ERROR, BAD_NODE)):
            if context.rank == 0:
                ledger.log("stopped", context.attempt, signal=self.stop_signal, saved=code == STOPPED)
            code = FINISHED  # after any other code, srun would kill the ranks that are still saving
        else:
            time.sleep(0.5)  # SLURM writes the log, and may be a little behind
            message = last_error_line(context.log, self.log_start)
            ledger.record_failure(context.attempt, Failure(time.time(), context.rank, context.node, code, message))
            # Codes from 126 on mean to `slurm.verdict` that a shell could not start a rank.
            code = code if 0 < code < 126 else 1
        return self._decide_locally(code) if context.local else code

    def _decide_locally(self, code: int) -> int:
        if self.context.rank != 0:
            return code
        progress = newest_entry(self.job.progress)
        verdict = decide_requeue(self.ledger, self.context.attempt, code, progress, self.task.retries)
        return _LOCAL_REQUEUE if verdict.requeue and self.stop_signal != "SIGTERM" else verdict.code
