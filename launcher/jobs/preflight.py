"""Checks of every node before a job trains: GPU, shards, disk, network, clocks.

They take seconds and name the node at fault, so that the next start can exclude it. A node that fails in the middle
of a run costs the time since the last checkpoint, and its error message rarely names it.
"""

import os
import socket
import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path

import torch
from torch import distributed

from data.reading import staging
from data.reading.shards import ShardSet
from data.worker_processes import shared_memory_problem
from launcher.engines.connection import Connection
from launcher.engines.rank_gpus import gpu_of_rank, identity_of_gpu, refuse_shared_gpus
from launcher.runs.run_directory import RunDirectory
from launcher.world import World, this_process
from recipes.errors import UserError
from slurm.job import BAD_NODE

_TEST_BYTES = 16 * 2**20  # size of the file that is written, and of the tensor that is all-reduced
_STAGING_TIMEOUT = timedelta(hours=12)  # the first node that has copied its shards waits for the last one
_CLOCK_SKEW = 5.0  # seconds above which times of files and log lines of several nodes mislead


@dataclass
class NodeReport:
    """What one process found on its node.

    Attributes:
        gpu: its identity.
        problems: sentences; a node with a problem cannot be used.
        disk_mb_per_second: write speed of the run directory, measured by one process per node.
        clock: seconds since 1970, read by all processes at the same moment.
        shards: the folder of the node's own copy of the shards, if they were staged.
    """

    rank: int
    node: str
    has_gpu: bool
    gpu: str = ""
    problems: list[str] = field(default_factory=list)
    disk_mb_per_second: float | None = None
    clock: float = 0.0
    shards: Path | None = None


def check_all_nodes(data: str, run: Path, stage: Path | None) -> Path | None:
    """Check all nodes of a job, staging the shards to each if asked; return the staged copy's folder, if there is one.

    Exits with `BAD_NODE` on every rank if a node cannot be used; only the ranks of that node print why.

    Raises:
        UserError: on every rank, if two use the same GPU.
    """
    started = time.monotonic()
    world, bandwidth = this_process(), None
    connection = Connection(world, _STAGING_TIMEOUT) if world.size > 1 else None
    own = check_node(data, run, stage, world)
    if connection:
        distributed.barrier()
    own.clock = time.time()
    reports = [own]
    if connection:
        gathered: list[NodeReport | None] = [None] * world.size
        distributed.all_gather_object(gathered, own)
        reports = [report for report in gathered if report is not None]
    some_have_gpus = any(report.has_gpu for report in reports)
    if some_have_gpus and not own.has_gpu:
        own.problems.append("it sees no GPU, and other nodes do")
    if own.problems:
        print(f"error: node {own.node} cannot be used: {own.problems[0]}", file=sys.stderr)
    if any(report.problems or (some_have_gpus and not report.has_gpu) for report in reports):
        sys.exit(BAD_NODE)
    if some_have_gpus:
        refuse_shared_gpus([report.gpu for report in reports])
    if connection:
        connection.connect_for_training()
        bandwidth = _all_reduce_speed(torch.device("cuda" if own.has_gpu else "cpu"))
    if world.is_main:
        _print_summary(reports, bandwidth, time.monotonic() - started)
    return own.shards


def check_node(data: str | None, run: Path, stage: Path | None, world: World) -> NodeReport:
    """Check the node of this process.

    Args:
        data: shards to open, if any.
        run: the run directory, or where runs are kept.
        stage: a folder on the node's own disk to copy the shards to.
        world: of this process, whose GPU is tried. The first process of a node measures the disk.
    """
    report = NodeReport(world.rank, os.environ.get("SLURMD_NODENAME", socket.gethostname()), torch.cuda.is_available())
    first_of_node = world.local_rank == 0
    try:
        if report.has_gpu:
            torch.cuda.set_device(gpu_of_rank(world, torch.cuda.device_count()))
            torch.ones(8, device="cuda").sum().item()  # a broken GPU is often still listed as available
            report.gpu = identity_of_gpu()
        if data:
            ShardSet.open(data)
        if first_of_node:
            RunDirectory(run).check_can_be_made()
            report.disk_mb_per_second = _disk_speed(nearest_folder(run))
        if data and stage:
            report.shards = staging.stage(Path(data), stage)
    except (UserError, OSError, RuntimeError) as error:
        report.problems.append(str(error))
    if first_of_node and (problem := shared_memory_problem()):
        report.problems.append(problem)
    return report


def nearest_folder(path: Path) -> Path:
    """Return the path if it is a folder, else the nearest existing folder above it."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())


def _disk_speed(folder: Path) -> float:
    """Return the MB/s written to a folder, flushed to the disk.

    Raises:
        UserError: the folder cannot be written.
    """
    trial = folder / f".trial-{socket.gethostname()}-{os.getpid()}"
    started = time.perf_counter()
    try:
        with trial.open("wb") as file:
            # Random bytes, because some file systems compress and would report a speed that checkpoints never see.
            file.write(os.urandom(2**20) * (_TEST_BYTES // 2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror})") from None
    finally:
        trial.unlink(missing_ok=True)
    return _TEST_BYTES / 1e6 / (time.perf_counter() - started)


def _all_reduce_speed(device: torch.device) -> float:
    """Return the GB/s that each process sends in an all-reduce: 2 (n - 1) / n × size, as the ring algorithm counts."""
    tensor, processes = torch.zeros(_TEST_BYTES // 4, device=device), distributed.get_world_size()
    distributed.all_reduce(tensor)  # the first one sets up connections
    started = time.perf_counter()
    distributed.all_reduce(tensor)
    tensor.sum().item()  # waits for the GPU
    return 2 * (processes - 1) / processes * _TEST_BYTES / 1e9 / (time.perf_counter() - started)


def _print_summary(reports: list[NodeReport], bandwidth: float | None, seconds: float) -> None:
    nodes = len({report.node for report in reports})
    disks = [(report.disk_mb_per_second, report.node) for report in reports if report.disk_mb_per_second]
    skew = max(report.clock for report in reports) - min(report.clock for report in reports)
    parts = [f"{len(reports)} processes on {nodes} nodes" if len(reports) > 1 else "1 process"]
    parts += [f"all-reduce {bandwidth:.2f} GB/s"] if bandwidth else []
    parts += [f"run directory {min(disks)[0]:,.0f} MB/s (slowest: {min(disks)[1]})", f"clocks within {skew:.2f} s"]
    print(f"preflight: {', '.join(parts)}; took {seconds:.1f} s", flush=True)
    if skew > _CLOCK_SKEW:
        latest = max(reports, key=lambda report: report.clock)
        print(f"warning: the clock of {latest.node} is {skew:.0f} s ahead, so times in logs mislead", flush=True)
