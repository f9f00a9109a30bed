"""How many loader processes the CPUs allow, alone, beside other ranks, and as a task of an srun."""

import pytest

from launcher import workers

RANKS = {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "4"}


@pytest.mark.parametrize(
    ("variables", "usable", "expected"),
    [
        ({}, 16, 16),
        (RANKS, 16, 4),
        (
            {**RANKS, "SLURM_CPUS_PER_TASK": "8", "SLURM_STEP_NUM_TASKS": "4"},
            8,
            8,
        ),  # bound to the task: not divided again
        ({**RANKS, "SLURM_CPUS_PER_TASK": "8", "SLURM_STEP_NUM_TASKS": "4"}, 64, 8),  # a cluster that binds nothing
        (
            {**RANKS, "SLURM_CPUS_PER_TASK": "16", "SLURM_STEP_NUM_TASKS": "1"},
            16,
            4,
        ),  # srun -n1 bigbatch train --procs 4
        ({**RANKS, "SLURM_STEP_NUM_TASKS": "4"}, 16, 4),
    ],
)
def test_the_cpus_of_a_node_are_divided_once(monkeypatch, variables, usable, expected):
    for name in (*RANKS, "SLURM_CPUS_PER_TASK", "SLURM_STEP_NUM_TASKS"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(workers, "usable_cpus", lambda: usable)
    assert workers.cpus_of_process() == expected
