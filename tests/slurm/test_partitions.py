"""What SLURM says of its partitions, what a job may ask of them, and the notations of nodes and time."""

import pytest

from recipes.errors import UserError
from slurm.cluster import Cluster, load_cluster
from slurm.job import Resources, parse_minutes, parse_nodes, show_minutes
from slurm.partitions import fitting_partitions, parse_partitions

SINFO = """\
gpu*|up|2-00:00:00|1-infinite|12|gpu:a100:8(S:0-1),shard:16|96|1031000|a[1-12]
gpu*|up|2-00:00:00|1-infinite|4|gpu:v100:4|40+|380000|v[01-04]
cpu|up|infinite|1-8|100|(null)|128|512000|c[001-100]
old|down|30:00|1-infinite|2|gpu:2|16|64000|old1,old2
"""


def test_partitions_are_read():
    gpu, cpu, old = parse_partitions(SINFO)
    assert (gpu.name, gpu.is_default, gpu.minutes, gpu.most_nodes) == ("gpu", True, 2880, None)
    assert [(kind.count, kind.gpus, kind.cpus) for kind in gpu.kinds] == [(12, {"a100": 8}, 96), (4, {"v100": 4}, 40)]
    assert (cpu.minutes, cpu.most_nodes, cpu.kinds[0].gpus) == (None, 8, {})
    assert (old.state, old.minutes, old.kinds[0].gpus) == ("down", 30, {"": 2})


USER_ERROR = {
    "unknown partition": (
        {"partition": "gpus"},
        {},
        "there is no partition 'gpus' on this cluster, only gpu, cpu, old",
    ),
    "too many nodes": (
        {"min_nodes": 13, "max_nodes": 13, "gpus_per_node": 8},
        {},
        "has 12 nodes with 8 GPUs and the job asks for 13",
    ),
    "too many GPUs": ({"gpus_per_node": 16}, {}, "0 nodes with 16 GPUs"),
    "GPUs where there are none": ({"partition": "cpu", "gpus_per_node": 1}, {}, "partition cpu has 0 nodes with 1 GPU"),
    "too long": ({"minutes": 2881}, {}, "--time 2-00:01:00 is over the limit of partition gpu, 2-00:00:00"),
    "too many nodes a job": (
        {"partition": "cpu", "min_nodes": 9, "max_nodes": 9, "gpus_per_node": 0},
        {},
        "may have 8 nodes, not 9",
    ),
    "down": ({"partition": "old"}, {}, "takes no jobs now"),
    "too many CPUs": ({"gpus_per_node": 8, "cpus_per_task": 16}, {}, "has 96 CPUs and the job asks for 128"),
    "too much memory": ({}, {"memory_gb": 2000}, "has 1006 GB and the job asks for 2000"),
}


@pytest.mark.parametrize("case", USER_ERROR)
def test_what_a_partition_cannot_give_is_refused(case):
    asked, profile, part = USER_ERROR[case]
    with pytest.raises(UserError) as refusal:
        fitting_partitions(Resources(**asked), Cluster(**profile), parse_partitions(SINFO))
    assert part in str(refusal.value)


def test_a_task_gets_its_gpus_share_of_the_cpus():
    gpu, cpu, old = parse_partitions(SINFO)
    assert [p.cpus_per_task(Resources(gpus_per_node=g)) for p, g in ((gpu, 8), (gpu, 4), (cpu, 0), (old, 1))] == [
        12,
        10,
        128,
        8,
    ]


def test_a_range_of_nodes_fits_if_its_least_does():
    asked = Resources(min_nodes=2, max_nodes=64, gpus_per_node=8)
    assert [one.name for one in fitting_partitions(asked, Cluster(), parse_partitions(SINFO))] == ["gpu"]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("1:30", 2), ("12:00:00", 720), ("1-0", 1440), ("1-12:30", 2190), ("2-00:00:01", 2881)],
)
def test_time_limits_are_read_as_slurm_does(text, minutes):
    assert parse_minutes(text) == minutes
    assert parse_minutes(show_minutes(minutes)) == minutes


@pytest.mark.parametrize("text", ["", "0", "soon", "1:2:3:4", "-5", "1.5", "10 ", "9" * 5000, f"{'9' * 5000}-0"])
def test_other_time_limits_are_refused(text):
    with pytest.raises(UserError, match="is not a time limit"):
        parse_minutes(text)


def test_nodes_are_a_number_or_a_range():
    assert (parse_nodes("4"), parse_nodes("2-8")) == ((4, 4), (2, 8))
    for wrong in ("0", "8-2", "many", "2-", "", "9" * 5000, f"1-{'9' * 5000}"):
        with pytest.raises(UserError, match="is not a number of nodes"):
            parse_nodes(wrong)


@pytest.fixture
def profiles(tmp_path, monkeypatch):
    """Write the user's and the project's file."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    (tmp_path / "config" / "bigbatch").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    def write(user: str, project: str = "") -> None:
        (tmp_path / "config" / "bigbatch" / "clusters.toml").write_text(user)
        (tmp_path / "clusters.toml").write_text(project)

    return write


def test_a_projects_profile_wins_over_the_users(profiles):
    profiles('[big]\npartition = "a"\naccount = "mine"\n[big.environment]\nX = "1"', '[big]\npartition = "b"')
    name, cluster = load_cluster(None)
    assert (name, cluster.partition, cluster.account, cluster.environment) == ("big", "b", "mine", {"X": "1"})


def test_without_a_profile_slurms_defaults_serve_and_local_always_does(profiles):
    profiles("")
    assert load_cluster(None) == ("slurm", Cluster())
    assert load_cluster("local") == ("local", Cluster())


@pytest.mark.parametrize(
    ("text", "name", "part"),
    [
        ("[a]\n[b]", None, "choose one with --cluster"),
        ("[a]", "b", "no profile of a cluster 'b'"),
        ("[a]\npartitoin = 'x'", "a", "unknown key 'partitoin'"),
        ("[a]\nretries = 'x'", "a", "retries = 'x' is not valid"),
        ('[a]\naccount = "x\\n#SBATCH --nodes=9"', "a", "account"),
        ("partition = 'x'", None, "not in the section of a cluster"),
        ("[a", None, "cannot be read"),
    ],
)
def test_a_mistake_in_a_profile_is_one_sentence(profiles, text, name, part):
    profiles(text)
    with pytest.raises(UserError, match=part) as refusal:
        load_cluster(name)
    assert "\n" not in str(refusal.value)


def test_the_example_profile_is_valid(profiles):
    from importlib import resources

    profiles((resources.files("slurm") / "clusters.example.toml").read_text())
    name, cluster = load_cluster(None)
    assert (name, cluster.gpus_per_node, cluster.environment) == ("mycluster", 8, {"NCCL_SOCKET_IFNAME": "ib0"})
