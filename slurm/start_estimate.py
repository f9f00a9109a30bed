"""Asks SLURM when a job would start, without submitting it."""

import re
import subprocess
import tempfile
from datetime import datetime, timedelta
from pathlib import Path

from slurm.commands import clean_environment, reason_of

_STARTS = re.compile(r"to start at (\S+)")
_NO_ESTIMATE = timedelta(days=360)  # SLURM counts a running job without a time limit as a year


def estimated_start(script: str) -> datetime | str:
    """Return when SLURM expects the job of a batch script to start, or the reason why it has no estimate."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "script.sh"
        file.write_text(script)
        command = ["sbatch", "--test-only", str(file)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=clean_environment())
        except subprocess.TimeoutExpired:
            return "SLURM did not answer"
    match = _STARTS.search(done.stderr)
    if match is None:
        return reason_of(done.stderr).removeprefix("allocation failure: ") or "SLURM gives no estimate"
    start = datetime.fromisoformat(match[1])
    return (
        start if start - datetime.now() < _NO_ESTIMATE else "SLURM gives no estimate: running jobs have no time limit"
    )
