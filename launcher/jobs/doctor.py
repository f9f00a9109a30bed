"""`bigbatch doctor`: prints what this machine has, and what would keep a run from training on it."""

import os
import platform
import shutil
from importlib.metadata import version
from pathlib import Path

import torch

from data.cpus import usable_cpus
from data.reading.shards import ShardSet
from launcher.jobs.preflight import check_node, nearest_folder
from launcher.world import World
from recipes.errors import UserError
from slurm.partitions import read_partitions


def print_machine(data: str | None, run: Path) -> bool:
    """Print what this machine has and the problems found; return whether there are none."""
    found = [f"bigbatch {version('bigbatch')}, Python {platform.python_version()}, torch {torch.__version__}"]
    gpus = [torch.cuda.get_device_properties(number) for number in range(torch.cuda.device_count())]
    found += [f"GPU {number}: {gpu.name}, {gpu.total_memory / 2**30:.0f} GB" for number, gpu in enumerate(gpus)]
    if not gpus:
        found.append("no GPU: training runs on the CPU")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found.append(f"{usable_cpus()} CPUs, {memory / 2**30:.0f} GB of memory")
    node = check_node(data, run, stage=None, world=World())
    if data and not node.problems:
        shards = ShardSet.open(data)
        images = ", ".join(f"{len(split):,} {name}" for name, split in shards.splits.items())
        found.append(f"shards {data}: {images} images, all files present")
    if node.disk_mb_per_second:
        free = shutil.disk_usage(nearest_folder(run)).free
        found.append(f"disk of {run}: {node.disk_mb_per_second:,.0f} MB/s written, {free / 1e9:,.0f} GB free")
    for line in [*found, *_partitions()]:
        print(f"  {line}")
    for problem in node.problems:
        print(f"! {problem}")
    return not node.problems


def _partitions() -> list[str]:
    """Describe the partitions of SLURM, or say why there are none to describe."""
    try:
        partitions = read_partitions()
    except UserError as error:
        return [f"no SLURM: {error}"]
    lines = []
    for partition in partitions:
        kinds = ", ".join(f"{kind.count} nodes with {kind.gpus} GPUs and {kind.cpus} CPUs" for kind in partition.kinds)
        lines.append(f"SLURM partition {partition.name}{' (default)' if partition.is_default else ''}: {kinds}")
    return lines
