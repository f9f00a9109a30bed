"""A real SLURM cluster on this machine: three nodes with two make-believe GPUs each, accounting included.

Several slurmd run side by side under names of their own, and "GPUs" are any files. Everything lives in one folder,
and `stop` ends every daemon. Needs root and Debian's packages (`make test` installs them).
"""

import os
import re
import shutil
import signal
import socket
import subprocess
import time
from pathlib import Path

_DAEMONS = ["munged", "mariadbd", "slurmdbd", "slurmctld", "slurmd"]
_PROGRAMS = [*_DAEMONS, "mariadb-install-db", "sbatch", "sacct", "sacctmgr", "setpriv"]
_HOSTS = Path("/etc/hosts")
_PATIENCE = 90.0  # seconds for a daemon to answer


def why_not_here() -> str | None:
    """What keeps a cluster from starting on this machine; None if nothing does."""
    if os.geteuid() != 0:
        return "a SLURM cluster for tests needs root"
    missing = [program for program in _PROGRAMS if shutil.which(program, path=_path()) is None]
    needed = f"a SLURM cluster for tests needs {', '.join(missing)}; on Debian `make test` installs what is needed"
    return needed if missing else None


class TestCluster:
    """The cluster in `folder`. Partitions: `gpu` (default), `urgent` (preempts it), `short` (10 min, 2 nodes a job)."""

    __test__ = False  # not a class of tests, whatever pytest thinks of the name

    def __init__(self, folder: Path):
        self.folder = folder
        self.nodes = [f"bb{os.getpid()}n{number}" for number in (1, 2, 3)]
        self.port = 10000 + os.getpid() % 90 * 100
        self.environment = {"SLURM_CONF": str(folder / "slurm.conf"), "PATH": _path()}
        self._daemons: list[subprocess.Popen] = []
        self._slurmd: dict[str, subprocess.Popen] = {}

    def start(self) -> None:
        for name in ("state", "log", "run", "munge", "db"):
            (self.folder / name).mkdir()
        self._add_hosts()
        self._start_munge()
        self._start_database()
        self._write_configuration()
        self._start("slurmdbd", "-D", MYSQL_UNIX_PORT=str(self.folder / "db/socket"))
        self._wait_for_port(self.port + 50)
        self.run("sacctmgr", "-i", "add", "cluster", "bigbatch")
        self._controller = self._start("slurmctld", "-D", "-c")
        for node in self.nodes:
            self.start_node(node)
        self.become_idle()

    def stop(self) -> None:
        """End everything, jobs first."""
        if self._slurmd:
            subprocess.run(["scancel", "--user=root"], env=self._env(), capture_output=True, timeout=60)
            self._wait_for_empty_queue()
        for daemon in [*self._slurmd.values(), *reversed(self._daemons)]:
            daemon.terminate()
            try:
                daemon.wait(10)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for left_over in processes_with({"SLURM_CONF": self.environment["SLURM_CONF"]}):
            os.kill(left_over, signal.SIGKILL)
        self._remove_hosts()

    def become_idle(self) -> None:
        """End all jobs and wait until every node is free; a node that SLURM has drained is taken back."""
        if self.run("squeue", "-h"):
            self.run("scancel", "--user=root")
        for node in self.run("sinfo", "-h", "-N", "-t", "drain", "-p", "gpu", "-o", "%N").split():
            self.run("scontrol", "update", f"nodename={node}", "state=resume")
        self.wait(lambda: self.run("sinfo", "-h", "-t", "idle", "-o", "%D", "-p", "gpu").strip() == "3")

    def end_stale_processes(self) -> None:
        """Kill what jobs left on a node that was down when they ended, and let SLURM see that it is gone.

        SLURM would find them when the node registers again, and drain the node for a job that runs twice.
        """
        for process in processes_with({"SLURM_CONF": self.environment["SLURM_CONF"]}):
            try:
                if b"\0SLURM_JOB_ID=" in Path(f"/proc/{process}/environ").read_bytes():
                    os.kill(process, signal.SIGKILL)
            except OSError:
                continue  # it has ended meanwhile
        time.sleep(2)  # in which slurmd notices
        self.run("scontrol", "reconfigure")
        time.sleep(2)  # in which the nodes register, and are drained if anything is left
        self.become_idle()

    def _wait_for_empty_queue(self) -> None:
        deadline = time.monotonic() + 30
        while (
            time.monotonic() < deadline
            and subprocess.run(["squeue", "-h"], env=self._env(), capture_output=True, timeout=60).stdout
        ):
            time.sleep(0.2)

    def run(self, *command: str) -> str:
        """Run one of SLURM's commands; return what it prints."""
        done = subprocess.run(command, env=self._env(), capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, (command, done.stderr)
        return done.stdout

    def controller(self) -> subprocess.Popen:
        """The process of slurmctld."""
        return self._controller

    def start_node(self, node: str) -> None:
        self._slurmd[node] = self._start("slurmd", "-D", "-N", node, kept=False)

    def kill_node_daemon(self, node: str) -> None:
        """As if the node were lost: SLURM hears nothing from it any more."""
        self._slurmd[node].kill()
        self._slurmd[node].wait()

    def occupy_a_node(self) -> str:
        """Submit a job that needs a whole node and preempts; return its id."""
        options = ["--parsable", "--partition=urgent", "--nodes=1", "--exclusive", "--time=10", "--output=/dev/null"]
        return self.run("sbatch", *options, "--wrap=sleep 600").strip()

    def wait(self, condition, seconds: float = _PATIENCE) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, f"it did not happen in time: see {self.folder / 'log'}"
            time.sleep(0.1)

    def _start(self, *command: str, kept: bool = True, **variables: str) -> subprocess.Popen:
        with (self.folder / "log" / f"{command[0]}.out").open("a") as log:
            daemon = subprocess.Popen(
                command, env=self._env() | variables, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        if kept:
            self._daemons.append(daemon)
        return daemon

    def _start_munge(self) -> None:
        folder = self.folder / "munge"
        (folder / "key").write_bytes(os.urandom(1024))
        (folder / "key").chmod(0o400)
        for path in (folder, folder / "key"):
            shutil.chown(path, "munge", "munge")
        folder.chmod(0o755)
        for above in (self.folder, *self.folder.parents):
            if above != Path("/") and not above.stat().st_mode & 0o001:
                above.chmod(above.stat().st_mode | 0o011)  # munged and mariadbd run as users of their own
        files = {"key-file": "key", "socket": "socket", "pid-file": "pid", "log-file": "log", "seed-file": "seed"}
        options = [f"--{option}={folder / name}" for option, name in files.items()]
        self._start("setpriv", "--reuid=munge", "--regid=munge", "--clear-groups", "munged", "--foreground", *options)
        self.wait((folder / "socket").exists)

    def _start_database(self) -> None:
        folder = self.folder / "db"
        shutil.chown(folder, "mysql", "mysql")
        options = [
            "--no-defaults",
            "--user=mysql",
            f"--datadir={folder}",
            "--innodb-log-file-size=8M",
            "--innodb-flush-method=nosync",
        ]
        self.run("mariadb-install-db", *options, "--auth-root-authentication-method=socket", "--skip-test-db")
        self._start(
            "mariadbd", *options, f"--socket={folder / 'socket'}", "--skip-networking", "--innodb-buffer-pool-size=64M"
        )
        create = ["mariadb", "--no-defaults", "-S", str(folder / "socket"), "-e", "create database slurm_acct_db"]
        self.wait(lambda: subprocess.run(create, capture_output=True).returncode == 0)

    def _write_configuration(self) -> None:
        folder, port = self.folder, self.port
        host = socket.gethostname().split(".")[0]
        for number in (0, 1):
            (folder / f"gpu{number}").touch()
        nodes = [
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port + 60 + number} "
            "CPUs=4 RealMemory=4000 Gres=gpu:2"
            for number, node in enumerate(self.nodes)
        ]
        where = {"folder": folder, "host": host, "port": port, "dbd_port": port + 50}
        (folder / "slurm.conf").write_text(_SLURM_CONF.format(nodes="\n".join(nodes), **where))
        (folder / "gres.conf").write_text(
            "".join(f"NodeName={node} Name=gpu File={folder}/gpu[0-1]\n" for node in self.nodes)
        )
        (folder / "cgroup.conf").write_text("CgroupAutomount=no\n")
        (folder / "slurmdbd.conf").write_text(_SLURMDBD_CONF.format(**where))
        (folder / "slurmdbd.conf").chmod(0o600)

    def _wait_for_port(self, port: int) -> None:
        def answers() -> bool:
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", port)) == 0

        self.wait(answers)

    def _add_hosts(self) -> None:
        with _HOSTS.open("a") as file:
            file.write("".join(f"127.0.0.1 {node}\n" for node in self.nodes))

    def _remove_hosts(self) -> None:
        """Of this cluster, and of those whose tests were killed."""
        own = re.compile(r"127\.0\.0\.1 bb(\d+)n\d\n")
        lines = _HOSTS.read_text().splitlines(keepends=True)
        alive = {folder.name for folder in Path("/proc").glob("[0-9]*")} - {str(os.getpid())}
        _HOSTS.write_text("".join(line for line in lines if not (match := own.fullmatch(line)) or match[1] in alive))

    def _env(self) -> dict[str, str]:
        return {**os.environ, **self.environment}


def processes_with(variables: dict[str, str]) -> list[int]:
    """Processes of this machine that have these variables in their environment, this one left out."""
    wanted = {f"{name}={value}".encode() for name, value in variables.items()}
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted <= set((folder / "environ").read_bytes().split(b"\0")) and int(folder.name) != os.getpid():
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def _path() -> str:
    return f"{os.environ['PATH']}:/usr/sbin:/sbin"


# A requeued job waits for `cred_expire` seconds: two minutes by default, five at the least.
_SLURM_CONF = """\
ClusterName=bigbatch
SlurmctldHost={host}
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/state/slurmd-%n
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd-%n.pid
SlurmdParameters=config_overrides
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
MpiDefault=none
SwitchType=switch/none
ReturnToService=2
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=0
SlurmdTimeout=10
SlurmctldTimeout=10
KillWait=20
MessageTimeout=10
MinJobAge=600
JobRequeue=1
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=localhost
AccountingStoragePort={dbd_port}
AccountingStoragePass={folder}/munge/socket
GresTypes=gpu
{nodes}
PartitionName=gpu Nodes=ALL Default=YES MaxTime=INFINITE PriorityTier=1 PreemptMode=REQUEUE
PartitionName=urgent Nodes=ALL MaxTime=INFINITE PriorityTier=10 PreemptMode=OFF
PartitionName=short Nodes=ALL MaxTime=10 MaxNodes=2 PriorityTier=1 PreemptMode=REQUEUE
"""

_SLURMDBD_CONF = """\
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket
DbdHost=localhost
DbdPort={dbd_port}
SlurmUser=root
StorageType=accounting_storage/mysql
StorageHost=localhost
StorageUser=root
StorageLoc=slurm_acct_db
PidFile={folder}/run/slurmdbd.pid
"""
