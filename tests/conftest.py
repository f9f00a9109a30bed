"""Fixtures that several folders of tests use."""

from pathlib import Path

import pytest

SHARED = Path(__file__).parents[1].parent / "shared" / "data"


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
