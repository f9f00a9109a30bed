"""What other launchers add to the command line is no mistake of the user."""

import sys

import pytest

from launcher import train


@pytest.fixture(autouse=True)
def second_on_its_node(monkeypatch):
    monkeypatch.setenv("LOCAL_RANK", "1")


def test_the_deepspeed_launcher_may_start_the_bigbatch_script(bigbatch):
    """`deepspeed "$(which bigbatch)" train …` puts its argument before the name of the command."""
    code, output, errors = bigbatch("--local_rank=1", "recipes", "demo")
    assert code == 0 and "name: demo" in output, errors


def test_the_deepspeed_launcher_may_start_the_module(monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", ["launcher.train", "--local_rank=1", "--help"])
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 0 and "--micro-batch" in capfd.readouterr().out


def test_an_argument_that_no_launcher_has_added_is_refused(bigbatch):
    code, _, errors = bigbatch("--local_rank=0", "recipes", "demo")
    assert code == 2 and "No such option" in errors
