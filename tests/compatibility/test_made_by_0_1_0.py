"""This version reads what 0.1.0 wrote: a run resumes, shards and weights are usable, and a job's records are shown."""

import json
import re
import shutil
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tests.command_line import run_program

ARTEFACTS = Path(__file__).parent / "made_by_0_1_0"


@pytest.fixture
def old(tmp_path) -> Path:
    """A copy of the artefacts that may be written to."""
    return Path(shutil.copytree(ARTEFACTS, tmp_path / "old"))


def bigbatch(folder: Path, *arguments: str) -> str:
    """Run a command in a folder and return what it printed."""
    done = run_program(*arguments, folder=folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def losses(run: Path) -> dict[int, float]:
    events = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return {event["step"]: event["loss"] for event in events if event["event"] == "step"}


@pytest.mark.slow
def test_a_run_resumes_with_the_losses_and_weights_that_it_would_have_had(old):
    expected = losses(old / "run")
    arguments = ["--data", "blobs", "--run-dir", "run", "--workers", "0", "--micro-batch", "4"]
    output = bigbatch(old, "train", "small.yaml", *arguments, "--procs", "2")
    assert "step 5 of 12" in output
    found = losses(old / "run")
    assert list(found) == list(expected) == list(range(1, 13))
    assert found == pytest.approx(expected, rel=1e-5)
    bigbatch(old, "export", "run", "again.safetensors")
    before, after = (safetensors.torch.load_file(old / name) for name in ("weights.safetensors", "again.safetensors"))
    assert before.keys() == after.keys()
    for name, value in before.items():
        torch.testing.assert_close(after[name], value, rtol=1e-4, atol=1e-5, msg=name)


@pytest.mark.slow
def test_exported_weights_are_evaluated_on_shards(old):
    assert "top-1 75.00%" in bigbatch(old, "evaluate", "weights.safetensors", "--data", "blobs", "--workers", "0")


@pytest.mark.slow
def test_the_inputs_of_every_step_are_the_same_bits(old):
    output = bigbatch(old, "fingerprint", "small.yaml", "--data", "blobs", "--steps", "2")
    assert output == (old / "fingerprint.txt").read_text()


def test_shards_are_whole(old):
    assert "blobs" in bigbatch(old, "verify", "blobs")


def test_the_records_of_a_job_are_understood(old):
    for file in (old / "submitted" / "job").iterdir():
        file.write_text(file.read_text().replace("/tmp/art/submitted", str(old / "submitted")))
    table = bigbatch(old, "runs", "submitted")
    assert re.search(r"submitted +small +COMPLETED +4332 .* 12/12 .* 81\.25%", table), table
    assert "top-1 81.25%" in bigbatch(old, "logs", "submitted")
