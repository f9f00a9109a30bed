"""A node that computes wrongly without any error is found while the job runs, named, and left out."""

from slurm.ledger import Ledger
from slurm.submit import CODE
from tests.slurm.conftest import SHORT, job_id, log_of, wait_for_end

# Silent data corruption: on one node, a bit of a weight flips after every update.
_FLIP = """

_right_update = DataParallel.update


def _wrong_update(self, *arguments):
    import os

    _right_update(self, *arguments)
    if os.environ["SLURMD_NODENAME"] == {node!r}:
        with torch.no_grad():
            self.module.get_classifier().weight.view(-1)[:1].view(torch.int32).bitwise_xor_(1)


DataParallel.update = _wrong_update
"""


def test_a_node_with_silent_errors_is_named_and_left_out(submitted, cluster, tmp_path):
    run, bad = tmp_path / "run", cluster.nodes[1]
    (tmp_path / "clusters.toml").write_text("[test.sbatch]\nhold = true\n")
    steps = ["batch.global=512", "batch.slices=4"]  # 2 steps
    submitted("demo", *SHORT, *steps, "--nodes", "2-3", "--time", 10, "--audit", 2, "--run-dir", run)
    with (run / "job" / CODE / "launcher" / "engines" / "data_parallel.py").open("a") as code:
        code.write(_FLIP.format(node=bad))
    cluster.run("scontrol", "release", job_id(run))
    assert wait_for_end(run).step == 2
    first, second = Ledger(run / "job").events("start")
    assert bad in first["nodes"] and len(first["nodes"]) == 3 and bad not in second["nodes"]
    verdict = Ledger(run / "job").events("verdict")[0]
    assert verdict["exclude"] == [bad]
    assert f"error: node {bad} cannot be used: rank 1 on {bad} computed another" in verdict["reason"]
    assert f"the audit stops this start: rank 1 on {bad}" in log_of(run)
