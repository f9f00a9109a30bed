"""A submitted run takes the user's own code with it."""

from pathlib import Path

from slurm.submit import CODE
from tests.docs.pages import ROOT, blocks
from tests.launcher.comparison import losses
from tests.slurm.conftest import log_of, wait_for_end

PAGE = ROOT / "docs" / "own-code.md"
PARTS = [
    "model.name=tiny_cnn",
    "model.drop_path=0",
    "model.layer_scale=null",
    "code.loss=focal",
    "code.optimizer=sign_sgd",
    "code.transform=salt",
]


def test_own_code_is_in_the_snapshot_and_trains_on_two_nodes(submitted, tmp_path):
    """The module is deleted right after the submission, so only the snapshot can provide it."""
    module = tmp_path / "my_code.py"
    module.write_text(next(block.text for block in blocks(PAGE, "python") if "my_code" in block.info))
    steps = ["schedule.epochs=1", "schedule.warmup_epochs=0", "batch.global=512", "batch.slices=4"]
    run = tmp_path / "run"
    submitted("demo", *PARTS, *steps, "--import", "my_code", "--nodes", 2, "--time", 10, "--run-dir", run)
    module.unlink()
    found = wait_for_end(run)
    assert (found.nodes, found.step) == (2, 2), log_of(run)
    assert len(losses(run)) == 2
    assert Path(run / "job" / CODE / "my_code.py").is_file()
