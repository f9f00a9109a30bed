"""The `bigbatch` command in tests: in this process, in one of its own, and as a program for shell scripts."""

import os
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from launcher.cli.main import main
from tests.preloaded import training_server

ROOT = Path(__file__).parents[1]


def run_command(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    """Run the command in this process; return its exit code.

    Like a process of its own it leaves none of the user's modules behind, which another test would take for its own.
    """
    monkeypatch.setattr(sys, "argv", ["bigbatch", *map(str, arguments)])
    monkeypatch.setattr(sys, "path", [*sys.path])
    before = set(sys.modules)
    with pytest.raises(SystemExit) as ended:
        main()
    for name in set(sys.modules) - before:
        file = Path(getattr(sys.modules[name], "__file__", None) or ROOT)
        if file.is_relative_to(Path.cwd()) and not file.is_relative_to(ROOT):
            del sys.modules[name]
    return ended.value.code or 0


def run_program(*arguments: object, folder: Path | None = None) -> subprocess.CompletedProcess:
    """Run the command in a preloaded process; return its exit code and what it printed."""
    command = [training_server().python, "-m", "launcher", *map(str, arguments)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def environment_with_program(folder: Path, python: Path | str, changes: dict[str, list[str]]) -> dict[str, str]:
    """Make a program `bigbatch` in `folder` that runs this code; return an environment whose PATH begins with it.

    Args:
        python: what runs it.
        changes: overrides that make the training of an example small, by the two words that follow `bigbatch`, e.g.
            "train demo".
    """
    program = folder / "bigbatch"
    folder.mkdir()
    cases = "".join(f'"{words}") set -- "$@" {shlex.join(added)} ;; ' for words, added in changes.items())
    program.write_text(
        f'#!/bin/sh\ncase "$1 $2" in {cases} esac\nexec {shlex.quote(str(python))} -P -m launcher "$@"\n'
    )
    program.chmod(0o755)
    found = {"PATH": f"{folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **found}
