"""The commands of docs/slurm.md that need a cluster run on one, as a newcomer types them."""

import subprocess
import sys

from launcher.runs.run_directory import RunDirectory
from tests.command_line import environment_with_program
from tests.docs.pages import ROOT, blocks
from tests.launcher.conftest import SMALL
from tests.slurm.conftest import row

PAGE = ROOT / "docs" / "slurm.md"
SMALL_DEMO = [*SMALL, "schedule.epochs=1", "schedule.warmup_epochs=0"]


def test_the_first_example_trains_the_demo(bigbatch, tmp_path):
    """Blocks marked `slurm`; the demo is smaller, and `logs --follow` ends with the job."""
    environment = environment_with_program(tmp_path / "bin", sys.executable, {"submit demo": SMALL_DEMO})
    examples = [block for block in blocks(PAGE, "bash") if "slurm" in block.info]
    assert len(examples) == 1
    done = subprocess.run(
        ["bash", "-eu", "-c", examples[0].text],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "submitted demo" in done.stdout and "finished: " in done.stdout
    found = row(tmp_path / "runs/demo")
    assert found.state in ("COMPLETED", "COMPLETING")
    assert RunDirectory(tmp_path / "runs/demo").metadata().total_steps == 22
