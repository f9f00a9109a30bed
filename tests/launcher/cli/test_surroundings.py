"""A command works, or says in one sentence why not, with closed streams and in a folder that was deleted."""

import subprocess
import sys

import pytest

CLOSED = ["2>&-", ">&-", "<&-", "<&- >&- 2>&-"]


def in_a_shell(command: str, *arguments: object, **options) -> subprocess.CompletedProcess:
    """Run a shell command, in which "$@" is the real `bigbatch` with these arguments."""
    program = [sys.executable, "-P", "-m", "launcher", *map(str, arguments)]
    return subprocess.run(["sh", "-c", command, "sh", *program], capture_output=True, text=True, timeout=60, **options)


@pytest.mark.parametrize("closed", CLOSED)
def test_streams_may_be_closed(digits, tmp_path, closed):
    """Where stderr was closed, its number went to the next file, and shards were written nowhere with exit code 1."""
    assert in_a_shell(f'"$@" {closed}', "recipes").returncode == 0
    assert in_a_shell(f'"$@" {closed}', "shard", "digits", tmp_path / "shards").returncode == 0
    assert in_a_shell(f'"$@" {closed}', "verify", tmp_path / "shards").returncode == 0


def test_a_deleted_working_directory_is_one_sentence(digits, tmp_path):
    """torch's libraries would end the process with words about oneMKL."""
    (tmp_path / "gone").mkdir()
    command = ["train", "demo", "--data", digits, "--run-dir", tmp_path / "run"]
    done = in_a_shell('rmdir "$PWD" && exec "$@"', *command, cwd=tmp_path / "gone")
    assert done.returncode == 2
    assert done.stderr == "error: the working directory is gone: change to a folder that exists\n"
    assert not (tmp_path / "run").exists()
