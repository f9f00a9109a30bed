"""What is refused before anything is submitted, and what a dry run shows."""
# ruff: noqa: E501 (a table with one case a line)

import os
import re
import sys
from pathlib import Path

import pytest

from launcher.jobs.planned_runs import SubmitOptions, plan_runs
from recipes.errors import UserError
from tests.launcher.conftest import SMALL
from tests.slurm.conftest import SHORT

GOLDEN = Path(__file__).parent / "dry_run.txt"

REFUSALS = {  # arguments, what the sentence must say
    "unknown partition": (["demo", *SHORT, "--partition", "gpux"], "there is no partition 'gpux'"),
    "more nodes than there are": (["demo", *SHORT, "--nodes", "4"], "partition gpu has 3 nodes with 1 GPU and the job asks for 4"),
    "more nodes than a job may have": (["demo", *SHORT, "--nodes", "3", "--partition", "short"], "may have 2 nodes, not 3"),
    "more GPUs than a node has": (["demo", *SHORT, "--gpus-per-node", "3"], "0 nodes with 3 GPUs"),
    "longer than the limit": (["demo", *SHORT, "--time", "11", "--partition", "short"], "is over the limit of partition short, 00:10:00"),
    "no such profile": (["demo", *SHORT, "--cluster", "nowhere"], "no profile of a cluster 'nowhere'"),
    "a typing error": (["demo", *SHORT, "optimizer.lrr=1"], "'optimizer.lr'"),
    "an override before any recipe": (["optimizer.lr=1", "demo"], "comes before any recipe"),
    "a second recipe that is wrong": (["demo", *SHORT, "demoo"], "did you mean 'demo'"),
    "two recipes of one name": (["demo", *SHORT, "demo", *SHORT], "would share a run directory"),
    "a model that does not exist": (["demo", *SHORT, "model.name=convnext_minuscule"], "is not a timm model"),
    "more processes than images": (["demo", *SHORT, "batch.global=4", "--nodes", "3", "--gpus-per-node", "2"], "start at most 4"),
    "a cut that one size of the range cannot make": (["demo", *SHORT, "--nodes", "1-3", "--micro-batch", "64"], "use 1 to 32"),
    "other classes": (["demo", *SHORT, "data.classes=7"], "has 10 classes"),
    "weights that are not there": (["demo", *SHORT, "model.weights=none.safetensors"], "there is no run or weights file"),
    "missing shards": (["demo", *SHORT, "--data", "none"], "there is no folder"),
    "a sweep of one": (["demo", *SHORT, "--array", "optimizer.lr=1"], "is not a sweep"),
    "a sweep of a wrong value": (["demo", *SHORT, "--array", "optimizer.lr=1,fast"], "optimizer.lr='fast' is not valid"),
    "a % in the run directory": (["demo", *SHORT, "--run-dir", "100%j"], "replaces what follows a %"),
    "what only SLURM knows": (["demo", *SHORT, "--cluster", "stranger"], "SLURM refuses the job: Batch job submission failed: "),
    "an option that sbatch does not have": (["demo", *SHORT, "--cluster", "typing"], "SLURM refuses the job: unrecognized option '--foo=x'"),
    "an option of bigbatch's own": (["demo", *SHORT, "--cluster", "own"], "use the key memory_gb instead"),
    "waiting for no job": (["demo", *SHORT, "--after", "nothing"], "--after nothing is not a job"),
    "waiting for an unknown job": (["demo", *SHORT, "--after", "999999"], "SLURM knows no job 999999"),
    "a range of nodes over the limit": (["demo", *SHORT, "--nodes", "1-3", "--partition", "short"], "may have 2 nodes, not 3: lower --nodes"),
    "a GPU type that is not there": (["demo", *SHORT, "--gpu-type", "b300"], "its types of GPUs are not named"),
    "two partitions that are both too short": (["demo", *SHORT, "--time", "11", "--partition", "short,short"], "over the limit"),
    "an audit by a single process": (["demo", *SHORT, "--audit", "5"], "this job has only one: leave --audit out"),
    "an audit without all weights": (["demo", *SHORT, "engine.zero=3", "--nodes", "2", "--audit", "5"], "ZeRO-3 shards them"),
    "too few nodes besides the excluded ones": (["demo", *SHORT, "--nodes", "3", "--cluster", "fewer"], "which the profile excludes and the job asks for 3"),
}  # fmt: skip

PROFILES = """
[stranger.sbatch]
reservation = "nowhere"
[typing.sbatch]
foo = "x"
[own.sbatch]
mem = "1G"
[fewer]
exclude = "{node}"
"""


@pytest.mark.parametrize("case", REFUSALS)
def test_a_mistake_is_refused_in_one_sentence_and_nothing_is_submitted(bigbatch, cluster, digits, case):
    arguments, part = REFUSALS[case]
    Path("clusters.toml").write_text(PROFILES.format(node=cluster.nodes[0]) if "--cluster" in arguments else "")
    before = cluster.run("squeue", "-h", "-t", "all", "-o", "%i")
    code, _, errors = bigbatch("submit", "--data", digits, *arguments)
    assert code == 2 and errors.startswith("error: ") and part in errors, errors
    assert len(errors.strip().splitlines()) == 1
    assert cluster.run("squeue", "-h", "-t", "all", "-o", "%i") == before
    assert not list(Path().rglob("recipe.yaml")), "a refused submission left a run behind"


def test_a_recipe_that_does_not_fit_is_refused_and_one_that_does_is_not(bigbatch, cluster, digits, tmp_path):
    profile, arguments = tmp_path / "clusters.toml", ["submit", "--data", digits, "demo", *SHORT, "--nodes", "1-2"]
    profile.write_text("[small]\ngpu_memory_gib = 0.5\n")
    before = cluster.run("squeue", "-h", "-t", "all", "-o", "%i")
    code, _, errors = bigbatch(*arguments)
    assert code == 2 and len(errors.strip().splitlines()) == 1
    assert "does not fit 1 GPU of 0.5 GiB in any way" in errors and "use GPUs of at least that" in errors
    assert cluster.run("squeue", "-h", "-t", "all", "-o", "%i") == before
    profile.write_text('[small]\ngpu = "v100"\n')
    code, output, errors = bigbatch(*arguments, "--dry-run")
    assert code == 0 and "nothing was submitted" in output, errors
    assert "# cut        2 nodes: 64 = 2 processes × 32 × 1 accumulation step\n" in output
    assert (
        output.count("#            DDP fits with 64 images at a time")
        == output.count("#            DDP fits with 32 images at a time")
        == 1
    )
    assert "0.0 h of training as planned for v100" in output
    rows = re.findall(r"^# ([12]) +20\S+ \d\d:\d\d  20\S+ \d\d:\d\d  ([\d.]+)$", output, re.MULTILINE)
    assert [nodes for nodes, _ in rows] == ["1", "2"], output  # when it starts and finishes, and its GPU-hours
    cluster.run("sbatch", "-N3", "--exclusive", "-o", "/dev/null", "--wrap", "sleep 100")  # without a time limit
    cluster.wait(lambda: cluster.run("squeue", "-h", "-t", "running"))
    assert "# 1          no estimate: SLURM gives no estimate" in bigbatch(*arguments, "--dry-run")[1]


def test_a_dry_run_shows_script_cut_and_plan_and_leaves_nothing(bigbatch, cluster, digits, tmp_path):
    """As in the file beside this test; BIGBATCH_GOLDEN=1 writes it anew."""
    (tmp_path / "clusters.toml").write_text(
        '[test]\naccount = "root"\ncpus_per_task = 2\nmemory_gb = 2\nsetup = ["module load cuda"]\nexclude = "nowhere"\n'
        '[test.environment]\nNCCL_SOCKET_IFNAME = "it\'s $(touch pwned)"\n[test.sbatch]\nexclusive = true\n'
    )
    small = [*SMALL, "schedule.epochs=20", "schedule.warmup_epochs=2", "ema.decay=0.97"]
    where = ["--nodes", "1-3", "--gpus-per-node", "2", "--time", "1-00:00:00", "--data", digits, "--dry-run"]
    chain = bigbatch("submit", "demo", *small, "name=pretrain", "demo", *small, "name=it's $(touch pwned)", *where)
    sweep = bigbatch("submit", "demo", *small, "--array", "optimizer.betas=[0.9,0.99],[0.9,0.999]", *where)
    assert chain[0] == sweep[0] == 0, chain[2] + sweep[2]
    shown = (chain[1] + sweep[1]).replace(str(tmp_path), "/here").replace(sys.executable, "python")
    shown = re.sub(r"\b20\d\d-\d\d-\d\d \d\d:\d\d", "YYYY-MM-DD HH:MM", shown)
    if os.environ.get("BIGBATCH_GOLDEN"):
        GOLDEN.write_text(shown)
    assert shown == GOLDEN.read_text()
    assert not (tmp_path / "runs").exists() and not list(tmp_path.rglob("pwned"))


def test_overrides_are_data(tmp_path, digits):
    """Whatever is in a value, the recipe that is put aside for the job has it as it is."""
    text = "'\"$(touch pwned)`id`\\\n#SBATCH --nodes=9 %j é"
    [[run]] = plan_runs(["demo", f"data.name={text}", "seed=3"], SubmitOptions(data=digits, run_dir=tmp_path))
    assert run.recipe.data.name == text and run.recipe.seed == 3


def test_each_recipe_of_a_chain_has_its_own_overrides(tmp_path, digits):
    [first], [second] = plan_runs(
        ["demo", "seed=1", "name=a", "demo", "seed=2", "name=b"], SubmitOptions(data=digits, run_dir=tmp_path)
    )
    assert (first.recipe.seed, second.recipe.seed) == (1, 2)
    assert (first.recipe.model.weights, second.recipe.model.weights) == (
        None,
        str(tmp_path / "a" / "weights.safetensors"),
    )


def test_a_sweep_divides_values_outside_of_brackets(tmp_path, digits):
    [runs] = plan_runs(
        ["demo"], SubmitOptions(data=digits, run_dir=tmp_path, sweep="optimizer.betas=[0.9,0.99],[0.8,0.9]")
    )
    assert [run.recipe.optimizer.betas for run in runs] == [(0.9, 0.99), (0.8, 0.9)]
    with pytest.raises(UserError, match="submit the recipes that follow"):
        plan_runs(["demo", "demo", "name=b"], SubmitOptions(data=digits, sweep="seed=1,2"))
