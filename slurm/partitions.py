"""What a partition can give, asked from SLURM, so that a job that could never start is refused and not queued."""

import re
import shutil
import subprocess
from dataclasses import dataclass

from recipes.errors import UserError
from slurm.cluster import Cluster
from slurm.job import Resources, parse_minutes, show_minutes

_FIELDS = "%P|%a|%l|%s|%D|%G|%c|%m"  # partition, up, time limit, nodes per job, nodes, GPUs, CPUs, MB; one line per kind of node


@dataclass(frozen=True)
class NodeKind:
    """Nodes of a partition that are alike."""

    count: int
    gpus: int
    cpus: int
    memory_mb: int


@dataclass(frozen=True)
class Partition:
    name: str
    is_default: bool
    up: bool
    minutes: int | None  # longest job; None: no limit
    most_nodes: int | None  # of one job; None: no limit
    kinds: list[NodeKind]

    def cpus_per_task(self, resources: Resources) -> int:
        """A task's fair share of a node's CPUs: all divided by its GPUs, or all where it has none."""
        shares = [kind.cpus // max(1, kind.gpus) for kind in self.kinds if kind.gpus >= resources.gpus_per_node]
        return max(1, min(shares))


def read_partitions() -> list[Partition]:
    """Ask SLURM for its partitions.

    Raises:
        UserError: there is no SLURM here, or it does not answer.
    """
    if shutil.which("sinfo") is None:
        raise UserError(
            "SLURM's commands (sinfo, sbatch) are not here: submit from a login node, or use --cluster local"
        )
    try:
        done = subprocess.run(["sinfo", "--noheader", "-o", _FIELDS], capture_output=True, text=True, timeout=60)
    except subprocess.TimeoutExpired:
        raise UserError("SLURM does not answer (sinfo took over a minute): try again later") from None
    if done.returncode:
        raise UserError(f"SLURM does not answer: {(done.stderr.strip().splitlines() or ['sinfo failed'])[-1]}")
    return parse_partitions(done.stdout)


def parse_partitions(text: str) -> list[Partition]:
    """Read the lines of ``sinfo -o`` with the fields above."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        name, up, limit, per_job, count, gres, cpus, memory = line.strip().split("|")
        kind = NodeKind(int(count), _gpus(gres), _number(cpus), _number(memory))
        most = per_job.rpartition("-")[2]
        partition = Partition(
            name.rstrip("*"),
            name.endswith("*"),
            up == "up",
            parse_minutes(limit) if limit[:1].isdigit() else None,
            int(most) if most.isdigit() else None,
            [],
        )
        found.setdefault(partition.name, partition).kinds.append(kind)
    return list(found.values())


def check_fits(resources: Resources, cluster: Cluster, partitions: list[Partition]) -> Partition:
    """Return the partition that a job would go to, or refuse what it cannot give.

    Raises:
        UserError: no such partition, it is down, too many nodes, GPUs, CPUs or too much memory, or too long.
    """
    partition = _find(resources.partition or cluster.partition, partitions)
    if not partition.up:
        raise UserError(f"partition {partition.name} takes no jobs now (its state is down): choose another --partition")
    minutes = resources.minutes
    if minutes and partition.minutes and minutes > partition.minutes:
        raise UserError(
            f"--time {show_minutes(minutes)} is over the limit of partition {partition.name}, {show_minutes(partition.minutes)}: ask for "
            f"less, the run saves before its time is up and queues again"
        )
    asked, per_node = resources.min_nodes, resources.gpus_per_node
    if partition.most_nodes and asked > partition.most_nodes:
        raise UserError(
            f"a job in partition {partition.name} may have {_plural(partition.most_nodes, 'node')}, not {asked}"
        )
    fitting = [kind for kind in partition.kinds if kind.gpus >= per_node]
    total = sum(kind.count for kind in fitting)
    if asked > total:
        have = f" with {_plural(per_node, 'GPU')}" if per_node else ""
        raise UserError(
            f"partition {partition.name} has {_plural(total, 'node')}{have} and the job asks for {asked}: lower --nodes"
        )
    cpus, memory = resources.tasks_per_node * resources.cpus_per_task, (cluster.memory_gb or 0) * 1024
    if sum(kind.count for kind in fitting if kind.cpus >= cpus) < asked:
        most = max(kind.cpus for kind in fitting)
        raise UserError(
            f"a node of partition {partition.name} has {most} CPUs and the job asks for {cpus} ({resources.tasks_per_node} tasks): "
            f"lower cpus_per_task in the cluster's profile, or --gpus-per-node"
        )
    if sum(kind.count for kind in fitting if kind.memory_mb >= memory) < asked:
        most = max(kind.memory_mb for kind in fitting) // 1024
        raise UserError(
            f"a node of partition {partition.name} has {most} GB and the job asks for {cluster.memory_gb}: lower memory_gb in the profile"
        )
    return partition


def _find(name: str | None, partitions: list[Partition]) -> Partition:
    for partition in partitions:
        if partition.name == name or (name is None and partition.is_default):
            return partition
    known = ", ".join(partition.name for partition in partitions) or "none"
    if name is None:
        raise UserError(f"this cluster has no default partition: choose one with --partition, it has {known}")
    raise UserError(f"there is no partition {name!r} on this cluster, only {known}")


def _gpus(gres: str) -> int:
    """GPUs of a node from SLURM's list of resources, e.g. ``gpu:a100:8(S:0-1),shard:16``."""
    return sum(int(match[1]) for match in re.finditer(r"(?:^|,)gpu(?::[^:,(]+)?:(\d+)", gres))


def _number(text: str) -> int:
    return int(text.rstrip("+"))


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
