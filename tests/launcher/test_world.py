"""A process's rank and world size come from the launcher's variables, and a mistake in them is one sentence."""

import pytest

from launcher import processes
from launcher.cli import entry
from launcher.world import World, this_process
from recipes.errors import UserError


def test_without_variables_there_is_one_process():
    assert this_process({}) == World() and this_process({}).is_main and not this_process({}).is_launched


def test_a_launchers_variables_are_taken_as_they_are():
    variables = {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}
    assert this_process(variables) == World(5, 8, 1, 4, is_launched=True)
    assert this_process({"WORLD_SIZE": "1"}) == World(0, 1, 0, 1, is_launched=True)
    assert this_process({"RANK": "1", "WORLD_SIZE": "2"}) == World(1, 2, 1, 2, is_launched=True)


MISTAKES = {
    "no rank": ({"WORLD_SIZE": "2"}, "RANK is not set"),
    "a rank with a typo": ({"WORLD_SIZE": "2", "RANK": "1x"}, "RANK is '1x', not a number"),
    "a negative rank": ({"WORLD_SIZE": "2", "RANK": "-1"}, "RANK is '-1', not a number"),
    "an empty rank": ({"WORLD_SIZE": "2", "RANK": ""}, "RANK is '', not a number"),
    "a size with a typo": ({"WORLD_SIZE": "two", "RANK": "1"}, "WORLD_SIZE is 'two', not a number"),
    "no size": ({"RANK": "1"}, "RANK is set but WORLD_SIZE is not"),
    "a rank too large": ({"WORLD_SIZE": "2", "RANK": "2"}, "contradict each other"),
    "no process at all": ({"WORLD_SIZE": "0", "RANK": "0"}, "contradict each other"),
    "more on this machine than in all": (
        {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"},
        "contradict each other",
    ),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_in_the_variables_is_one_sentence(mistake):
    variables, sentence = MISTAKES[mistake]
    with pytest.raises(UserError, match=sentence) as caught:
        this_process(variables)
    assert "\n" not in str(caught.value)


def test_a_silent_rank_leaves_rank_0_the_time_to_print(monkeypatch):
    """torchrun ends all ranks when one has failed. `bigbatch train --procs` waits for the others by itself."""
    waits: list[float] = []
    monkeypatch.setattr(entry.time, "sleep", waits.append)
    for name, value in {"WORLD_SIZE": "2", "RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    assert not entry._print_error("every rank meets this") and len(waits) == 1
    assert entry._print_error("[rank 1] only this rank meets this") and len(waits) == 1
    monkeypatch.setenv(processes._PARENT, "1")
    assert not entry._print_error("every rank meets this") and len(waits) == 1
    monkeypatch.setenv("RANK", "0")
    assert entry._print_error("every rank meets this") and len(waits) == 1
