"""A look at every node before hours are spent on it: device, shards, disk, network, clocks.

In a job it takes seconds and names the node that is at fault, so that the next start can do without it. By hand,
`bigbatch doctor` looks at the machine it runs on.
"""

import os
import platform
import shutil
import socket
import sys
import time
from dataclasses import dataclass, field
from datetime import timedelta
from importlib.metadata import version
from pathlib import Path

import torch
from accelerate import PartialState
from torch import distributed

from data.cpus import usable_cpus
from data.reading import staging
from data.reading.shards import ShardSet
from recipes.errors import UserError
from slurm.job import BAD_NODE
from slurm.partitions import read_partitions

_TRIAL_BYTES = 16 * 2**20  # written to the disk, and exchanged between the processes
_STAGING_TIMEOUT = timedelta(hours=12)  # the first node that has copied its shards waits for the last
_CLOCKS_APART = 5.0  # seconds above which log lines and file times mislead


@dataclass
class Findings:
    """What one process saw. A problem is a sentence; a node with one cannot be used."""

    rank: int
    node: str
    has_gpu: bool
    problems: list[str] = field(default_factory=list)
    disk_mb_per_second: float | None = None  # of the run directory; measured by one process of a node
    clock: float = 0.0  # seconds since 1970, taken at one moment by all
    shards: Path | None = None  # where this node reads them


def preflight(data: str, run: Path, stage: Path | None) -> Path | None:
    """Look at all nodes of a job, copying the shards near where asked; return where they are copied to, if they are.

    Exits with `BAD_NODE` on every rank if a node cannot be used; only the ranks of that node say why.
    """
    started = time.monotonic()
    state = PartialState(cpu=not torch.cuda.is_available())
    own = _look(data, run, stage, state.process_index, first_of_node=state.local_process_index == 0)
    group, bandwidth = None, None
    if state.num_processes > 1:
        group = distributed.new_group(backend="gloo", timeout=_STAGING_TIMEOUT)
        distributed.barrier(group)
    own.clock = time.time()
    everyone = [own]
    if group:
        everyone = [None] * state.num_processes
        distributed.all_gather_object(everyone, own, group=group)
    if any(other.has_gpu for other in everyone) and not own.has_gpu:
        own.problems.append("it sees no GPU, other nodes do")
    if own.problems:
        print(f"error: node {own.node} cannot be used: {own.problems[0]}", file=sys.stderr)
    if any(other.problems or (not other.has_gpu and any(o.has_gpu for o in everyone)) for other in everyone):
        sys.exit(BAD_NODE)
    if group:
        bandwidth = _all_reduce_speed(state.device)
    if state.is_main_process:
        _print_summary(everyone, bandwidth, time.monotonic() - started)
    return own.shards


def examine_here(data: str | None, run: Path) -> bool:
    """Print what this machine has and what is wrong with it; return whether nothing is."""
    found = [f"bigbatch {version('bigbatch')}, Python {platform.python_version()}, torch {torch.__version__}"]
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    found += [f"GPU {number}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GB" for number, gpu in enumerate(gpus)]
    if not gpus:
        found.append("no GPU: training runs on the CPU")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found.append(f"{usable_cpus()} CPUs, {memory / 2**30:.0f} GB of memory")
    own = _look(data, run, stage=None, rank=0, first_of_node=True)
    if data and own.shards is None and not own.problems:
        shards = ShardSet.open(data)
        images = ", ".join(f"{len(split):,} {name}" for name, split in shards.splits.items())
        found.append(f"shards {data}: {images} images, all files there")
    if own.disk_mb_per_second:
        free = shutil.disk_usage(_existing(run)).free
        found.append(f"disk of {run}: {own.disk_mb_per_second:,.0f} MB/s written, {free / 1e9:,.0f} GB free")
    try:
        for partition in read_partitions():
            kinds = ", ".join(
                f"{kind.count} nodes with {kind.gpus} GPUs and {kind.cpus} CPUs" for kind in partition.kinds
            )
            found.append(f"SLURM partition {partition.name}{' (default)' if partition.is_default else ''}: {kinds}")
    except UserError as error:
        found.append(f"no SLURM: {error}")
    for line in found:
        print(f"  {line}")
    for problem in own.problems:
        print(f"! {problem}")
    return not own.problems


def _look(data: str | None, run: Path, stage: Path | None, rank: int, first_of_node: bool) -> Findings:
    own = Findings(rank, os.environ.get("SLURMD_NODENAME", socket.gethostname()), torch.cuda.is_available())
    try:
        if own.has_gpu:
            torch.ones(8, device="cuda").sum().item()
        if data:
            ShardSet.open(data)
        if first_of_node:
            own.disk_mb_per_second = _disk_speed(_existing(run))
        if stage:
            own.shards = staging.stage(Path(data), stage)
    except (UserError, OSError, RuntimeError) as error:
        own.problems.append(str(error))
    return own


def _disk_speed(folder: Path) -> float:
    """MB/s written to a folder, flushed to the disk.

    Raises:
        UserError: it cannot be written.
    """
    trial = folder / f".trial-{socket.gethostname()}-{os.getpid()}"
    started = time.perf_counter()
    try:
        with trial.open("wb") as file:
            file.write(os.urandom(2**20) * (_TRIAL_BYTES // 2**20))
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise UserError(f"{folder} cannot be written ({error.strerror})") from None
    finally:
        trial.unlink(missing_ok=True)
    return _TRIAL_BYTES / 1e6 / (time.perf_counter() - started)


def _all_reduce_speed(device: torch.device) -> float:
    """GB/s that each process sends while all add up a tensor, as the ring algorithm counts them."""
    tensor, processes = torch.zeros(_TRIAL_BYTES // 4, device=device), distributed.get_world_size()
    distributed.all_reduce(tensor)
    started = time.perf_counter()
    distributed.all_reduce(tensor)
    tensor.sum().item()
    return 2 * (processes - 1) / processes * _TRIAL_BYTES / 1e9 / (time.perf_counter() - started)


def _print_summary(everyone: list[Findings], bandwidth: float | None, seconds: float) -> None:
    nodes = len({other.node for other in everyone})
    disks = [(other.disk_mb_per_second, other.node) for other in everyone if other.disk_mb_per_second]
    apart = max(other.clock for other in everyone) - min(other.clock for other in everyone)
    parts = [f"{len(everyone)} processes on {nodes} nodes" if len(everyone) > 1 else "1 process"]
    parts += [f"all-reduce {bandwidth:.2f} GB/s"] if bandwidth else []
    parts += [f"run directory {min(disks)[0]:,.0f} MB/s (slowest: {min(disks)[1]})", f"clocks within {apart:.2f} s"]
    print(f"preflight: {', '.join(parts)}; took {seconds:.1f} s", flush=True)
    if apart > _CLOCKS_APART:
        latest = max(everyone, key=lambda other: other.clock)
        print(f"warning: the clock of {latest.node} is {apart:.0f} s ahead: times in logs mislead", flush=True)


def _existing(path: Path) -> Path:
    """The path, or the nearest folder above it that is there."""
    path = path.absolute()
    return next(folder for folder in (path, *path.parents) if folder.is_dir())
