"""What runs on every rank of a job: it starts the program and looks after it.

The program itself cannot: it may hang in a collective, be killed for want of memory, or belong to a start that SLURM has
given up. So a small process stays beside it, passes on what SLURM asks, says how it ended, and ends it where it must.
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

import submitit

from data.cpus import usable_cpus
from slurm.job import BAD_NODE, FINISHED, STOPPED, USER_ERROR, Job
from slurm.ledger import Attempt, Failure, Ledger
from slurm.verdict import decide_requeue, newest_entry

_LOOK_EVERY = 3.0  # seconds between looks at the ledger: who owns the job, has another rank failed
_PEERS_GRACE = 10.0  # seconds that a rank has to end by itself after another one failed
_PORTS = range(20000, 32768)  # below those that systems hand out by themselves
_LOCAL_REQUEUE = 144  # the exit code by which submitit's local executor starts a job again
_ERROR_LINE = re.compile(r"(?:\[rank\d+\]:\s?)?((?:error: |(?:\w+\.)*\w*(?:Error|Exception|Interrupt)\b).*)")


@dataclass(frozen=True)
class RankContext:
    """One rank's place in a job."""

    attempt: Attempt
    rank: int
    world_size: int
    local_rank: int
    tasks_per_node: int
    node: str
    nodes: list[str]
    log: Path
    local: bool

    @classmethod
    def here(cls, ledger: Ledger) -> "RankContext":
        """This process's place, from the variables of SLURM or of submitit's local executor."""
        env = submitit.JobEnvironment()
        local = env.cluster == "local"
        restart = int(os.environ.get("SLURM_RESTART_COUNT", 0))
        if local:  # the executor does not count; the ledger does
            restart = sum(event["job"] == env.job_id and event["requeue"] for event in ledger.events("verdict"))
        return cls(
            attempt=Attempt(env.job_id, restart),
            rank=env.global_rank,
            world_size=env.num_tasks,
            local_rank=env.local_rank,
            tasks_per_node=env.num_tasks // env.num_nodes,
            node=os.environ.get("SLURMD_NODENAME", socket.gethostname()),
            nodes=["127.0.0.1"] if local else list(env.hostnames),
            log=env.paths.stdout,
            local=local,
        )

    def environment(self) -> dict[str, str]:
        """Variables by which the ranks find each other, as torchrun would set them."""
        threads = usable_cpus() // (self.tasks_per_node if self.local else 1)
        number = int(re.sub(r"\D", "", self.attempt.job_id)) * 64 + self.attempt.restart
        return {
            "OMP_NUM_THREADS": os.environ.get("SLURM_CPUS_PER_TASK", str(max(1, threads))),
            **os.environ,
            "MASTER_ADDR": self.nodes[0],
            "MASTER_PORT": str(_PORTS[number % len(_PORTS)]),
            "RANK": str(self.rank),
            "WORLD_SIZE": str(self.world_size),
            "LOCAL_RANK": str(self.local_rank),
            "LOCAL_WORLD_SIZE": str(self.tasks_per_node),
        }


class RankTask:
    """The callable that submitit carries to every rank.

    Args:
        grace: seconds that the program has to save and end once it is told to.
        retries: as in `slurm.verdict`; used where there is no batch script to decide.
    """

    def __init__(self, job: Job, grace: float, retries: int):
        self.job, self.grace, self.retries = job, grace, retries

    def __call__(self) -> None:
        sys.exit(RankSupervisor(self).run())


class RankSupervisor:
    def __init__(self, task: RankTask):
        self.task, self.job = task, task.job
        self.ledger = Ledger(self.job.folder)
        self.place = RankContext.here(self.ledger)
        self.child: subprocess.Popen | None = None
        self.told: str | None = None  # name of the signal that asked to stop
        self.deadline: float | None = None  # when the program is killed if it has not ended
        self.owned = False
        self.peer_failed = False

    def run(self) -> int:
        for number in (signal.SIGUSR2, signal.SIGTERM):
            signal.signal(number, self._pass_on)
        if self.place.rank == 0:
            self._begin()
        code = STOPPED if self.told else self._run_program()
        if code is None:
            print("this start of the job has been given up, another one goes on: ending", file=sys.stderr)
            return 1
        return self._conclude(code)

    def _pass_on(self, number: int, _frame) -> None:
        self.told = self.told or signal.Signals(number).name
        if self.deadline is None:
            self.deadline = time.monotonic() + self.task.grace
        if self.child is not None and self.child.poll() is None:
            self.child.terminate()

    def _begin(self) -> None:
        """Take the job over; if an earlier start may still be alive on a lost node, wait until it has seen that."""
        ledger, attempt, before = self.ledger, self.place.attempt, self.ledger.owner()
        ledger.claim(attempt)
        if before and before != attempt and not ledger.of(before, "finished", "stopped", "verdict"):
            silent = ledger.seconds_since_heartbeat()
            if silent is not None and silent < 60:
                time.sleep(_LOOK_EVERY + 2)
        ledger.heartbeat()
        progress = newest_entry(self.job.progress)
        ledger.log("start", attempt, nodes=self.place.nodes, tasks=self.place.world_size, progress=progress)

    def _run_program(self) -> int | None:
        """The program's exit code; None if this start no longer owns the job."""
        self.log_start = self.place.log.stat().st_size if self.place.log.exists() else 0
        self.child = subprocess.Popen(
            [sys.executable, "-m", self.job.module, *self.job.arguments],
            env=self.place.environment(),
            # SLURM sends its warning to every process of a job, and the default action is to end.
            preexec_fn=lambda: signal.signal(signal.SIGUSR2, signal.SIG_IGN),
        )
        if self.told:
            self.child.terminate()
        looked = time.monotonic()
        while True:
            try:
                return self.child.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                now = time.monotonic()
            if self.deadline and now > self.deadline:
                self.child.kill()
            if now - looked >= _LOOK_EVERY:
                looked = now
                if self._is_given_up():
                    self.child.kill()
                    self.child.wait()
                    return None
                with contextlib.suppress(OSError):  # a file system that is away for a moment is no reason to end
                    self._look_after_peers(now)
                    if self.place.rank == 0:
                        self.ledger.heartbeat()

    def _is_given_up(self) -> bool:
        owner, own = self.ledger.owner(), self.place.attempt
        self.owned = self.owned or owner == own
        if owner is None or owner == own:
            return False
        return self.owned or (owner.job_id == own.job_id and owner.restart > own.restart)

    def _look_after_peers(self, now: float) -> None:
        """A rank whose peer died may wait for it for ever."""
        if not self.peer_failed and self.ledger.failures(self.place.attempt):
            self.peer_failed = True
            self.deadline = self.deadline or now + _PEERS_GRACE

    def _conclude(self, code: int) -> int:
        ledger, place = self.ledger, self.place
        if code == FINISHED:
            if place.rank == 0:
                ledger.log("finished", place.attempt)
        elif code in (STOPPED, -signal.SIGTERM) or (self.told and code not in (USER_ERROR, BAD_NODE)):
            if place.rank == 0:
                ledger.log("stopped", place.attempt, signal=self.told, saved=code == STOPPED)
            code = FINISHED
        else:
            time.sleep(0.5)  # SLURM writes the log; let it catch up
            ledger.fail(place.attempt, Failure(time.time(), place.rank, place.node, code, self._last_error_line()))
            code = code if 0 < code < 126 else 1
        return self._conclude_locally(code) if place.local else code

    def _conclude_locally(self, code: int) -> int:
        if self.place.rank != 0:
            return code
        verdict = decide_requeue(
            self.ledger, self.place.attempt, code, newest_entry(self.job.progress), self.task.retries
        )
        return _LOCAL_REQUEUE if verdict.requeue and self.told != "SIGTERM" else verdict.code

    def _last_error_line(self) -> str:
        try:
            with self.place.log.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(self.log_start, size - 65536))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        found = [match[1] for line in lines if (match := _ERROR_LINE.match(line))]
        return found[-1].strip() if found else ""
