"""Asks SLURM what its partitions offer, so that a job that could never start is refused instead of queued."""

import re
import shutil
from dataclasses import dataclass

from recipes.errors import UserError
from slurm.cluster import Cluster
from slurm.commands import ask
from slurm.job import Resources, parse_minutes, show_minutes
from slurm.node_names import node_names

# Partition, state, time limit, nodes of a job, nodes, GPUs, CPUs, MB, names of the nodes; one line per kind of node.
_FIELDS = "%P|%a|%l|%s|%D|%G|%c|%m|%N"


@dataclass(frozen=True)
class NodeKind:
    """Nodes of a partition that are alike."""

    count: int
    gpus: dict[str, int]  # of one node, by SLURM's name of the type; empty for GPUs without a type
    cpus: int
    memory_mb: int
    names: list[str]

    def gpus_of_type(self, gpu_type: str | None) -> int:
        """Return the number of GPUs of a node, of one type or of all."""
        return sum(self.gpus.values()) if gpu_type is None else self.gpus.get(gpu_type, 0)


@dataclass(frozen=True)
class Partition:
    """A partition and its limits.

    Attributes:
        state: SLURM's word; only partitions that are "up" start jobs.
        minutes: the longest time limit of a job; None: no limit.
        least_nodes, most_nodes: limits of one job; None: no limit.
    """

    name: str
    is_default: bool
    state: str
    minutes: int | None
    least_nodes: int | None
    most_nodes: int | None
    kinds: list[NodeKind]

    def cpus_per_task(self, resources: Resources) -> int:
        """Return a task's fair share of a node's CPUs: all divided by its GPUs, or all where there are none."""
        shares = [
            kind.cpus // max(1, kind.gpus_of_type(None))
            for kind in self.kinds
            if kind.gpus_of_type(resources.gpu_type) >= resources.gpus_per_node
        ]
        return max(1, min(shares))


def read_partitions() -> list[Partition]:
    """Return SLURM's partitions, including hidden ones: some centres hide partitions that their users may use.

    Raises:
        UserError: there is no SLURM here, or it does not answer.
    """
    if shutil.which("sinfo") is None:
        raise UserError(
            "SLURM's commands (sinfo, sbatch) are not installed here: submit from a login node, or use --cluster local"
        )
    return parse_partitions(ask(["sinfo", "--all", "--noheader", "--noconvert", "-o", _FIELDS]))


def parse_partitions(text: str) -> list[Partition]:
    """Return the partitions in the output of ``sinfo -o`` with the fields of `_FIELDS`."""
    found: dict[str, Partition] = {}
    for line in text.splitlines():
        if "|" not in line:  # with several clusters, sinfo names each in a line of its own
            continue
        name, state, limit, per_job, count, gres, cpus, memory, names = line.strip().split("|")
        kind = NodeKind(int(count), gpus_of(gres), int(cpus.rstrip("+")), int(memory.rstrip("+")), node_names(names))
        least, _, most = per_job.rpartition("-")
        partition = Partition(
            name.rstrip("*"),
            name.endswith("*"),
            state,
            parse_minutes(limit) if limit[:1].isdigit() else None,
            int(least) if least.isdigit() else None,
            int(most) if most.isdigit() else None,
            [],
        )
        found.setdefault(partition.name, partition).kinds.append(kind)
    return list(found.values())


def gpus_of(gres: str) -> dict[str, int]:
    """Return a node's GPUs by type from SLURM's list of resources, e.g. ``gpu:a100:8(S:0-1),shard:16``."""
    gpus: dict[str, int] = {}
    for match in re.finditer(r"(?:^|,)gpu(?::([^:,(]*[A-Za-z_][^:,(]*))?:(\d+)", gres):
        gpus[match[1] or ""] = gpus.get(match[1] or "", 0) + int(match[2])
    return gpus


def fitting_partitions(resources: Resources, cluster: Cluster, partitions: list[Partition]) -> list[Partition]:
    """Return those of the requested partitions that can run the job.

    Raises:
        UserError: none of them can, for the reason given for the first one; or one does not exist.
    """
    asked = resources.partition or cluster.partition
    names: list[str | None] = [*asked.split(",")] if asked else [None]
    found, refusals = [], []
    for name in names:
        partition = _find(name, partitions)  # an unknown name is an error even if another partition fits
        try:
            check_fits(resources, cluster, partition)
            found.append(partition)
        except UserError as error:
            refusals.append(error)
    if not found:
        raise refusals[0]
    return found


def check_fits(resources: Resources, cluster: Cluster, partition: Partition) -> None:
    """Check that a partition can run the job.

    Raises:
        UserError: the partition is down, or the job asks for too many nodes, GPUs or CPUs, for too much memory or time.
    """
    if partition.state != "up":
        raise UserError(
            f"partition {partition.name} takes no jobs now (its state is {partition.state}): choose another --partition"
        )
    _check_limits(resources, partition)
    usable = _usable_nodes(resources, cluster, partition)
    asked, per_task = resources.min_nodes, resources.cpus_per_task
    cpus, memory = resources.tasks_per_node * per_task, (cluster.memory_gb or 0) * 1024
    if sum(kind.count for kind in usable if kind.cpus >= cpus) < asked:
        most = max(kind.cpus for kind in usable)
        raise UserError(
            f"a node of partition {partition.name} has {most} CPUs and the job asks for {cpus} "
            f"({resources.tasks_per_node} tasks): lower cpus_per_task in the cluster's profile, or --gpus-per-node"
        )
    if sum(kind.count for kind in usable if kind.memory_mb >= memory) < asked:
        most = max(kind.memory_mb for kind in usable) // 1024
        raise UserError(
            f"a node of partition {partition.name} has {most} GB and the job asks for {cluster.memory_gb}: "
            f"lower memory_gb in the profile"
        )


def _check_limits(resources: Resources, partition: Partition) -> None:
    """Refuse a time limit or a number of nodes that the partition does not allow."""
    minutes = resources.minutes
    if minutes and partition.minutes and minutes > partition.minutes:
        raise UserError(
            f"--time {show_minutes(minutes)} is over the limit of partition {partition.name}, "
            f"{show_minutes(partition.minutes)}: ask for less; the run saves before its time is up and is requeued"
        )
    # SLURM queues a range of nodes whose upper end is over the limit, and never starts it.
    if partition.most_nodes and resources.max_nodes > partition.most_nodes:
        raise UserError(
            f"a job in partition {partition.name} may have {_plural(partition.most_nodes, 'node')}, "
            f"not {resources.max_nodes}: lower --nodes"
        )
    if partition.least_nodes and resources.min_nodes < partition.least_nodes:
        raise UserError(
            f"a job in partition {partition.name} needs at least {_plural(partition.least_nodes, 'node')}, "
            f"not {resources.min_nodes}: raise --nodes"
        )


def _usable_nodes(resources: Resources, cluster: Cluster, partition: Partition) -> list[NodeKind]:
    """Return the kinds of nodes with enough GPUs, without excluded nodes; refuse if they are too few."""
    per_node, gpu_type, asked = resources.gpus_per_node, resources.gpu_type, resources.min_nodes
    excluded = set(node_names(cluster.exclude))
    usable = []
    for kind in partition.kinds:
        count = kind.count - len(excluded & set(kind.names))
        if kind.gpus_of_type(gpu_type) >= per_node and count:
            usable.append(NodeKind(count, kind.gpus, kind.cpus, kind.memory_mb, kind.names))
    total = sum(kind.count for kind in usable)
    if asked <= total:
        return usable
    gpus = f"{gpu_type} GPU" if gpu_type else "GPU"
    have = f" with {_plural(per_node, gpus)}" if per_node else ""
    without = f" besides {cluster.exclude}, which the profile excludes" if excluded else ""
    refusal = f"partition {partition.name} has {_plural(total, 'node')}{have}{without} and the job asks for {asked}"
    types = sorted({name for kind in partition.kinds for name in kind.gpus if name})
    if gpu_type and gpu_type not in types:
        raise UserError(f"{refusal}: its types of GPUs are {', '.join(types) or 'not named'}, choose with --gpu-type")
    if not total and not excluded:
        most = max((kind.gpus_of_type(gpu_type) for kind in partition.kinds), default=0)
        raise UserError(f"{refusal}: lower --gpus-per-node, its nodes have at most {most}")
    raise UserError(f"{refusal}: lower --nodes")


def _find(name: str | None, partitions: list[Partition]) -> Partition:
    for partition in partitions:
        if partition.name == name or (name is None and partition.is_default):
            return partition
    known = ", ".join(partition.name for partition in partitions) or "none"
    if name is None:
        raise UserError(f"this cluster has no default partition: choose one with --partition, it has {known}")
    raise UserError(f"there is no partition {name!r} on this cluster, only {known}")


def _plural(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
