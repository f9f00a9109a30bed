"""What several folders of tests share: markers, the division of tests over processes, and real images."""

import atexit
import ctypes
import functools
import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

# Set before torch is imported. Its threads wait for each other in busy loops, so that with more of them than idle cores
# (two processes of pytest, each with the processes that its tests start) a step takes up to ten times as long.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What is imported is no garbage, so it need not be searched for garbage again and again, nor at the end.
gc.set_threshold(50_000)
atexit.register(gc.freeze)

# Typer makes all commands anew, in 10 ms, whenever the program is called, and the tests call it thousands of times.
typer.main.get_command = functools.cache(typer.main.get_command)

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
SLURM = "tests/slurm"


def _group(nodeid: str) -> str:
    """Return the tests that must run in one process: a file, whose fixtures are costly, or all that share a cluster."""
    file, _, _ = nodeid.partition("::")
    return SLURM if file.startswith(f"{SLURM}/") else file


@pytest.hookimpl(tryfirst=True)  # before pytest deselects by markers
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests that need a SLURM cluster, and let a parallel run begin with tests/slurm, its longest group.

    Files with slow tests come next, so that no process is left with one of them when the others have nothing to do.
    """
    for item in items:
        if "cluster" in getattr(item, "fixturenames", ()):
            item.add_marker("slurm")
    slow = {_group(item.nodeid) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (_group(item.nodeid) != SLURM, _group(item.nodeid) not in slow))


def pytest_collection_finish() -> None:
    """Leave what was imported for the tests out of all later collections."""
    gc.freeze()


@pytest.hookimpl(optionalhook=True)  # pytest-xdist asks
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Give each process whole groups."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _group(nodeid)

    return Scheduling(config, log)


@pytest.fixture(autouse=True, scope="module")
def freed_memory_is_returned() -> Iterator[None]:
    """Return to the system what the tests of a file have freed.

    A training keeps it for its next step (`keep_freed_memory`). A process of pytest would keep it to its end, and each
    fork copies the page tables of all of it, which takes 0.1 s for 2 GB.
    """
    yield
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it
    if trim is not None:
        trim(0)


def _images(name: str) -> Path:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"needs the images in {path}")
    return path


@pytest.fixture(scope="session")
def dogs_vs_cats_zip() -> Path:
    """2,400 images, named as in Kaggle's cats-vs-dogs download."""
    return _images("dogs-vs-cats.zip")


@pytest.fixture(scope="session")
def cifar10_zip() -> Path:
    """CIFAR-10 as 60,000 JPEG files in class folders."""
    return _images("cifar10.zip")
