"""Ranks from the variables of an srun, where a cluster of make-believe GPUs cannot show them."""

import pytest

from launcher.engines.rank_gpus import gpu_of_rank
from launcher.world import this_process
from recipes.errors import UserError
from slurm.srun_step import step_variables

STEP = {
    **{"SLURM_JOB_ID": "7", "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "10", "SLURM_PROCID": "9"},
    **{"SLURM_LOCALID": "1", "SLURM_NODEID": "2", "SLURM_STEP_NODELIST": "a[3-4],b"},
    **{"SLURM_STEP_TASKS_PER_NODE": "4(x2),2", "SLURM_GPUS_ON_NODE": "2"},
}


def test_a_task_of_an_srun_knows_its_place():
    assert step_variables(STEP) == {
        **{"RANK": "9", "WORLD_SIZE": "10", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
        **{"MASTER_ADDR": "a3", "MASTER_PORT": "20448"},
    }


def test_a_task_that_sees_only_its_own_gpu_keeps_its_number_on_the_node_and_takes_the_first_gpu():
    """With --gpus-per-task and --gpu-bind, SLURM shows each task one device, which then has the number 0."""
    variables = step_variables({**STEP, "CUDA_VISIBLE_DEVICES": "1"})
    assert variables["LOCAL_RANK"] == "1"
    assert gpu_of_rank(this_process(variables), visible=1, environment={"CUDA_VISIBLE_DEVICES": "GPU-5e"}) == 0
    assert gpu_of_rank(this_process(variables), visible=2, environment={"CUDA_VISIBLE_DEVICES": "0,1"}) == 1


@pytest.mark.parametrize("change", [{"WORLD_SIZE": "2"}, {"SLURM_STEP_NUM_TASKS": "1"}, {"SLURM_STEP_NUM_TASKS": ""}])
def test_outside_of_a_step_and_under_another_launcher_nothing_is_set(change):
    assert step_variables({**STEP, **change}) == {}


@pytest.mark.parametrize(
    ("change", "part"),
    [
        ({"SLURM_GPUS_ON_NODE": "4"}, "started 2 tasks on a node with 4 GPUs: use `srun --ntasks-per-node=4"),
        ({"SLURM_PROCID": ""}, "SLURM_PROCID is not set"),
        ({"SLURM_STEP_TASKS_PER_NODE": "many"}, "cannot be read"),
    ],
)
def test_what_cannot_train_is_told_what_to_type(change, part):
    with pytest.raises(UserError, match="(?s)" + part.replace("(", r"\\(")):
        step_variables({**STEP, **change})


@pytest.mark.parametrize("name", ["train", "lr"])
def test_commands_that_train_take_srun_as_their_launcher(name, command, monkeypatch):
    """`test_srun_is_a_launcher_of_trainings` replays and trains; here the mistake shows that SLURM was asked."""
    for variable, value in (STEP | {"SLURM_PROCID": "0", "SLURM_GPUS_ON_NODE": "4"}).items():
        monkeypatch.setenv(variable, value)
    code, _, errors = command(name, "demo", "--data", "shards")
    assert code == 2 and "srun started 2 tasks on a node with 4 GPUs" in errors
