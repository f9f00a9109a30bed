"""A damaged or missing file of a run, a data set or a job never shows a traceback, in any command that reads it."""

import shutil

import pytest

from tests.launcher.cli.bad_inputs import KINDS, NAMES

SUBMIT = "submit {good}/small.yaml --data {good}/blobs --cluster local --dry-run --run-dir {tmp}/new"
# Files of a run, a data set or a job, each with the commands that read it.
RUN = ("evaluate {run} --data {good}/blobs", "export {run} {tmp}/new.safetensors", "report {run}", "runs {good}")
RESUMED = "train {good}/small.yaml --data {good}/blobs --run-dir {run} --workers 0 engine.precision=fp16"
JOB = ("logs {job}", "cancel {job}", "resume {job}", "runs {good}", "report {job}")
FILES = {
    "run/recipe.yaml": (*RUN, RESUMED, "predict {run} {good}/image.png"),
    "run/run.json": (*RUN, RESUMED, "predict {run} {good}/image.png"),
    "run/metrics.jsonl": (*RUN, RESUMED),
    "run/checkpoints": RUN,
    "run/checkpoints/step-00000005/checkpoint.json": RUN[:2],
    "run/checkpoints/step-00000005/part-00001-of-00002.safetensors": RUN[:2],
    "run/mistakes.json": ("report {run}",),
    "run/predictions/x.npz": ("report {run} {run}", "compare {run} {run}"),
    "blobs/manifest.json": ("verify {good}/blobs", "fingerprint {good}/small.yaml --data {good}/blobs"),
    "blobs/train.index.npy": ("verify {good}/blobs", "fingerprint {good}/small.yaml --data {good}/blobs"),
    "blobs/train-000000.tar": ("verify {good}/blobs", "fingerprint {good}/small.yaml --data {good}/blobs"),
    "submitted/job/job.json": JOB,
    "submitted/job/jobs.json": JOB,
    "submitted/job/submission.json": JOB,
    "submitted/job/events.jsonl": JOB,
    "submitted/job/owner.json": JOB,
    "clusters.toml": (SUBMIT.replace("--cluster local", "--cluster here"), "resume {job}"),
    "config/bigbatch/clusters.toml": (SUBMIT.replace("--cluster local", "--cluster here"),),
    "config/bigbatch/speeds.json": ("plan demo data.classes=10 --gpu cpu",),
}
# Kinds that a file whose path is given can become by a mistake: no FIFO, and no other names.
NOT_CONTENTS = (*NAMES, "name too long", "path too long", "below a file", "FIFO", "device", "in an unreadable folder")
CONTENTS = tuple(kind for kind in KINDS if kind not in NOT_CONTENTS)


@pytest.mark.parametrize("file", FILES)
def test_a_bad_file_of_a_run_a_data_set_or_a_job(file, good, tmp_path, complaints):
    """Some commands can do without the file; the others name it, or the folder that it belongs to."""
    found = []
    path = good / file
    path.parent.mkdir(parents=True, exist_ok=True)
    kept = tmp_path / "kept"
    if path.exists():
        path.rename(kept)
    for number, kind in enumerate(CONTENTS):
        KINDS[kind](path)
        for command in FILES[file]:
            folder = tmp_path / f"{number}-{command.split()[0]}"
            places = {"good": good, "tmp": folder, "run": good / "run", "job": good / "submitted"}
            found += [
                f"{kind}, {command}: {what}"
                for what in complaints([part.format(**places) for part in command.split()], True, (0, 1, 2))
            ]
        if path.is_dir() and not path.is_symlink():
            path.chmod(0o700)
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    assert not found, "\n" + "\n".join(found)
