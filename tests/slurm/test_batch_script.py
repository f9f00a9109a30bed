"""The text of batch scripts, and profiles: tests of what the SLURM of the test cluster cannot do itself."""

import re
import shlex
import sys

import pytest

from recipes.errors import UserError
from slurm.batch_script import batch_script
from slurm.cluster import _FIXED_SBATCH_OPTIONS, _OWN_SBATCH_OPTIONS, Cluster, load_cluster
from slurm.job import Resources
from slurm.state import SlurmState


def options(script: str) -> dict[str, str]:
    return {name: value for name, _, value in (line.partition("=") for line in re.findall(r"#SBATCH --(.*)", script))}


def srun_line(script: str) -> list[str]:
    return shlex.split(re.search(r"^srun (.*)2> ", script.replace("\\\n", ""), re.MULTILINE)[1])


def test_without_a_time_limit_there_is_no_line_for_one():
    assert "time" not in options(batch_script(Resources(), Cluster(), "x"))
    assert options(batch_script(Resources(minutes=90), Cluster(), "x"))["time"] == "90"


def test_gpus_of_a_type_and_several_partitions():
    found = options(batch_script(Resources(gpus_per_node=4, gpu_type="a100", partition="a,b"), Cluster(), "x"))
    assert (found["gpus-per-node"], found["partition"]) == ("a100:4", "a,b")
    assert "gpus-per-node" not in options(batch_script(Resources(gpus_per_node=0, gpu_type="a100"), Cluster(), "x"))


def test_srun_gets_all_numbers_and_the_options_of_the_profile():
    profile = Cluster(srun={"mpi": "pmix", "gpu-bind": "single:1", "exact": True})
    words = srun_line(batch_script(Resources(gpus_per_node=2, cpus_per_task=3), profile, "x"))
    assert {
        *("--nodes=$SLURM_JOB_NUM_NODES", "--ntasks=$((SLURM_JOB_NUM_NODES * 2))", "--ntasks-per-node=2"),
        *("--cpus-per-task=3", "--export=ALL", "--mpi=pmix", "--gpu-bind=single:1", "--exact"),
    } <= set(words)


def test_a_container_of_pyxis_wraps_the_ranks_and_not_the_script():
    profile = Cluster(
        python="python3", srun={"container-image": "/images/bigbatch.sqsh", "container-mounts": "/home,/data"}
    )
    script = batch_script(Resources(), profile, "x")
    words = srun_line(script)
    assert {"--container-image=/images/bigbatch.sqsh", "--container-mounts=/home,/data"} <= set(words)
    assert "--container-workdir=$PWD" in words and words[-5:-3] == ["python3", "-u"]
    assert f"python={sys.executable}\n" in script  # decides at the end, on the node


def test_apptainer_as_the_python_runs_ranks_and_decision():
    script = batch_script(Resources(), Cluster(python="apptainer exec --nv /images/x.sif python"), "x")
    assert "python='apptainer exec --nv /images/x.sif python'\n" in script
    assert srun_line(script)[-9:-3] == ["apptainer", "exec", "--nv", "/images/x.sif", "python", "-u"]


def test_a_sweep_may_run_a_few_at_a_time():
    assert options(batch_script(Resources(), Cluster(), "x", count=5, at_once=2))["array"] == "0-4%2"
    assert options(batch_script(Resources(), Cluster(), "x", count=5))["array"] == "0-4%5"


@pytest.mark.parametrize("name", [*_OWN_SBATCH_OPTIONS, *_FIXED_SBATCH_OPTIONS, "gres"])
def test_options_that_bigbatch_writes_are_refused_in_a_profile(name, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clusters.toml").write_text(f'[a.sbatch]\n{name} = "gpu:1"\n')
    with pytest.raises(UserError, match="use .* instead|would break without it: remove it") as refusal:
        load_cluster(None)
    assert len(str(refusal.value).splitlines()) == 1


def test_variables_of_sbatch_set_only_what_the_profile_leaves_out(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    for name, value in {"SBATCH_ACCOUNT": "shell", "SBATCH_PARTITION": "shell", "SBATCH_RESERVATION": "r"}.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "clusters.toml").write_text('[a]\npartition = "profile"\n[a.sbatch]\nexclusive = true\n')
    _, cluster = load_cluster(None)
    assert (cluster.account, cluster.partition) == ("shell", "profile")
    assert cluster.sbatch == {"reservation": "r", "exclusive": True}


ACTIVE = [
    *("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "RESIZING", "REQUEUED", "REQUEUE_FED"),
    *("REQUEUE_HOLD", "SPECIAL_EXIT", "SIGNALING", "STAGE_OUT", "STOPPED", "RESV_DEL_HOLD", "POWER_UP_NODE"),
    *("RECONFIG_FAIL", "LAUNCH_FAILED", "UPDATE_DB", "EXPEDITING"),
]
ENDS = [
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED"),
    *("REVOKED", "TIMEOUT"),
]


def test_every_state_of_slurm_is_active_or_an_end():
    assert all(SlurmState(name, "", None).is_active for name in ACTIVE)
    assert not any(SlurmState(name, "", None).is_active for name in ENDS)
