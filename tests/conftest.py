"""Fixtures that several folders of tests use."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1].parent / "shared" / "data"
SLURM = "tests/slurm"


def _piece(nodeid: str) -> str:
    """What one process takes of the tests: a whole file, whose fixtures are dear, or all of tests/slurm, as there is one cluster."""
    file, _, _ = nodeid.partition("::")
    return SLURM if file.startswith(f"{SLURM}/") else file


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with tests/slurm: where processes share the tests, it is the longest piece."""
    items.sort(key=lambda item: _piece(item.nodeid) != SLURM)


@pytest.hookimpl(optionalhook=True)  # pytest-xdist asks
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Give each process whole pieces."""
    from xdist.scheduler import LoadScopeScheduling

    class Scheduling(LoadScopeScheduling):
        def _split_scope(self, nodeid: str) -> str:
            return _piece(nodeid)

    return Scheduling(config, log)


def _photographs(name: str) -> Path:
    path = SHARED / name
    if not path.is_file():
        pytest.skip(f"needs the photographs {path}")
    return path


@pytest.fixture(scope="session")
def dogs_vs_cats_zip() -> Path:
    """2,400 photographs, named as in Kaggle's cats-vs-dogs download."""
    return _photographs("dogs-vs-cats.zip")


@pytest.fixture(scope="session")
def cifar10_zip() -> Path:
    """CIFAR-10 as 60,000 JPEG files in class folders."""
    return _photographs("cifar10.zip")
