"""Runs recipes: planning, training, evaluation, jobs on a cluster, and the `bigbatch` command.

``python -m`` puts the working directory first on Python's path, and many repositories have a ``models/build.py`` or a
``data.py``. Importing this package makes Python search for the packages of bigbatch beside this one only, so that
it never imports such a file instead.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

_ROOT = str(Path(__file__).parents[1])
_PACKAGES = frozenset({"bigbatch", "recipes", "models", "data", "slurm", "launcher"})


class _OwnPackages(MetaPathFinder):
    """Finds bigbatch's top-level packages in the folder that holds this package, and no other packages."""

    @staticmethod
    def find_spec(name: str, path: Sequence[str] | None = None, target: ModuleType | None = None) -> ModuleSpec | None:
        return PathFinder.find_spec(name, [_ROOT], target) if name in _PACKAGES else None


sys.meta_path.insert(0, _OwnPackages())
