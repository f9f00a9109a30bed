"""Stands for a training in the tests of jobs: leaves numbered entries in a folder, and stops after some or when told.

    python -m program FOLDER ENTRIES [PER_START]

Every rank records when it ran, so that a test sees whether two starts of a job ever ran at once. As in a training, no
rank makes progress before all of them have started.
"""

import json
import os
import signal
import sys
import time
from pathlib import Path


def main(folder: Path, entries: int, per_start: int) -> int:
    rank, progress = int(os.environ["RANK"]), folder / "progress"
    told = []
    signal.signal(signal.SIGTERM, lambda *_: told.append(True))
    started, made = time.time(), 0
    (folder / "ran").mkdir(exist_ok=True)
    record = folder / "ran" / f"{os.environ['SLURM_JOB_ID']}-{os.getpid()}.json"
    world = int(os.environ["WORLD_SIZE"])
    arrived = folder / "arrived" / f"{os.environ['SLURM_JOB_ID']}-{os.environ.get('SLURM_RESTART_COUNT', 0)}"
    arrived.mkdir(parents=True, exist_ok=True)
    (arrived / str(rank)).touch()
    while True:
        seen = {"rank": rank, "world": world, "node": os.environ["SLURMD_NODENAME"]}
        unfinished = record.with_suffix(".tmp")  # a kill must not leave half a record
        unfinished.write_text(json.dumps({**seen, "from": started, "to": time.time()}))
        unfinished.rename(record)
        done = len(list(progress.glob("[!.]*")))
        if done >= entries:
            return 0
        if told or made >= per_start:
            return 130
        if len(list(arrived.iterdir())) == world:
            if rank == 0:
                (progress / f"entry-{done:04}").touch()
            made += 1
        time.sleep(0.2)


if __name__ == "__main__":
    _folder, _entries, *_rest = sys.argv[1:]
    Path(_folder, "progress").mkdir(exist_ok=True)
    sys.exit(main(Path(_folder), int(_entries), int(*_rest or ["1000000"])))
