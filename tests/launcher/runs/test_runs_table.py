"""`bigbatch runs`: one line for each run, once or again and again."""

import sys

import pytest

from launcher.runs import runs_table
from launcher.runs.runs_table import print_runs
from recipes.errors import UserError
from tests.launcher.saved_runs import CLASSES, make_saved_run


@pytest.fixture
def run(toy_shards, tmp_path):
    return make_saved_run(tmp_path / "runs/one", toy_shards(*CLASSES), {8: (0.5, 0.25)})


def test_an_accuracy_has_its_interval(run, capsys):
    print_runs(run.path.parent)
    assert "50.00% (21.5–78.5)" in capsys.readouterr().out


def test_watch_brings_the_table_up_to_date_until_ctrl_c(run, capsys, monkeypatch):
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == 2:
            raise KeyboardInterrupt
        run.metrics.append("step", 9, epoch=4.5, images_per_second=1234.0, loss=1.0)

    monkeypatch.setattr(runs_table.time, "sleep", sleep)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "200")
    print_runs(run.path.parent, watch=True)
    first, *_, last = capsys.readouterr().out.split("restarts")[1:]
    assert "1,234" not in first and "1,234" in last


def test_watch_needs_a_terminal(run, capsys):
    with pytest.raises(UserError, match="--watch"):
        print_runs(run.path.parent, watch=True)
