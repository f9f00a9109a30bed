"""A bad input never shows a traceback: every command, on a table of bad inputs for each of its arguments.

The command ends with exit code 2 (1 where its help says so) and one sentence that names the culprit. Each test is one
argument, with all kinds of bad inputs in turn.
"""

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.launcher.cli.bad_inputs import KINDS, NAMES

WRITTEN = ("missing", "dangling link", *NAMES)  # what a command may write anew
NO_PATH = ("name too long", "path too long", "below a file", "in an unreadable folder", "link to itself")


@dataclass(frozen=True)
class Argument:
    """One argument of a command that is a path.

    Attributes:
        command: the arguments; BAD stands for the bad path.
        suffix: of the bad path.
        fine: kinds that are no mistake here; the command may succeed, or fail for another reason.
        skipped: kinds that are not tried.
        codes: exit codes of a mistake.
    """

    command: str
    suffix: str = ""
    fine: tuple[str, ...] = ()
    codes: tuple[int, ...] = (2,)
    skipped: tuple[str, ...] = ()


# A recipe of defaults alone is a valid one.
RECIPE = {"suffix": ".yaml", "fine": ("empty JSON",)}
# A file that is there already is replaced, and a FIFO waits for its reader, as it does for any program.
OUTPUT = {
    "fine": tuple(kind for kind in KINDS if kind not in (*NO_PATH, "empty folder") or kind == "link to itself"),
    "skipped": ("FIFO",),
}
FOLDER = {"fine": (*WRITTEN, "empty folder")}
TRAIN = "train {good}/small.yaml --data {good}/blobs --run-dir {tmp}/new --workers 0"
SUBMIT = "submit {good}/small.yaml --data {good}/blobs --cluster local --dry-run --run-dir {tmp}/new"
ARGUMENTS = {
    "recipes NAME": Argument("recipes BAD", **RECIPE),
    "shard SOURCE": Argument("shard BAD {tmp}/out --workers 1"),
    "shard zip": Argument("shard BAD {tmp}/out --workers 1", ".zip"),
    "shard tar": Argument("shard BAD {tmp}/out --workers 1", ".tar"),
    "shard DESTINATION": Argument("shard {good}/images BAD --workers 1", **FOLDER),
    "shard --class-map": Argument("shard {good}/images {tmp}/out --workers 1 --class-map BAD", ".txt"),
    "verify FOLDER": Argument("verify BAD"),
    "train RECIPE": Argument("train BAD --data {good}/blobs --run-dir {tmp}/new", **RECIPE),
    "train --data": Argument("train {good}/small.yaml --data BAD --run-dir {tmp}/new"),
    "train model.weights": Argument(f"{TRAIN} model.weights=BAD", ".safetensors"),
    "train model.weights of torch": Argument(f"{TRAIN} model.weights=BAD", ".pth"),
    # An impossible precision ends the starts that nothing else ends.
    "train --run-dir": Argument(
        "train {good}/small.yaml --data {good}/blobs --run-dir BAD engine.precision=fp16", **FOLDER
    ),
    "train --dry-run RECIPE": Argument("train --dry-run BAD --data {good}/blobs", **RECIPE),
    "train --dry-run --data": Argument("train --dry-run {good}/small.yaml --data BAD"),
    "lr RECIPE": Argument("lr BAD --data {good}/blobs", **RECIPE),
    "lr --data": Argument("lr {good}/small.yaml --data BAD"),
    "evaluate RUN": Argument("evaluate BAD --data {good}/blobs"),
    "evaluate WEIGHTS": Argument("evaluate BAD --data {good}/blobs", ".safetensors"),
    "evaluate --data": Argument("evaluate {good}/run --data BAD"),
    "evaluate --recipe": Argument("evaluate {good}/weights.safetensors --data {good}/blobs --recipe BAD", **RECIPE),
    "predict RUN": Argument("predict BAD {good}/image.png"),
    "predict WEIGHTS": Argument("predict BAD {good}/image.png", ".safetensors"),
    "predict IMAGE": Argument("predict {good}/run BAD --workers 0", ".jpg", fine=("image",), codes=(1, 2)),
    "predict FOLDER": Argument("predict {good}/run BAD --workers 0", fine=("image",), codes=(1, 2)),
    "export RUN": Argument("export BAD {tmp}/new.safetensors"),
    "export FILE": Argument("export {good}/run BAD", ".safetensors", **OUTPUT),
    "report RUN": Argument("report BAD --out {tmp}/report.html"),
    "report --out": Argument("report {good}/run --out BAD", ".html", **OUTPUT),
    "compare RUN": Argument("compare {good}/run BAD"),
    "replay RUN": Argument("replay BAD --step 1"),
    "diff RUN": Argument("diff {good}/run BAD"),
    "fingerprint RECIPE": Argument("fingerprint BAD --data {good}/blobs", **RECIPE),
    "fingerprint --data": Argument("fingerprint {good}/small.yaml --data BAD"),
    "plan RECIPE": Argument("plan BAD", **RECIPE),
    "submit RECIPE": Argument(SUBMIT.replace("{good}/small.yaml", "BAD"), **RECIPE),
    "submit --data": Argument(SUBMIT.replace("{good}/blobs", "BAD")),
    "submit --run-dir": Argument(SUBMIT.replace("{tmp}/new", "BAD"), **FOLDER),
    "submit model.weights": Argument(f"{SUBMIT} model.weights=BAD", ".safetensors"),
    "runs FOLDER": Argument("runs BAD"),
    "logs RUN": Argument("logs BAD"),
    "cancel RUN": Argument("cancel BAD"),
    "resume RUN": Argument("resume BAD"),
    "doctor --data": Argument("doctor --data BAD --run-dir {tmp}", codes=(1,)),
    "doctor --run-dir": Argument("doctor --run-dir BAD", **FOLDER, codes=(1,)),
}


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_an_argument_that_is_a_bad_input(argument, good, tmp_path, complaints):
    row, found = ARGUMENTS[argument], []
    for number, (kind, make) in enumerate(KINDS.items()):
        if kind in row.skipped:
            continue
        folder = tmp_path / str(number)
        folder.mkdir()
        path = folder / f"bad{row.suffix}"
        path = make(path) or path
        command = [part.format(good=good, tmp=folder).replace("BAD", str(path)) for part in row.command.split()]
        named = "" if kind in (*NAMES, "path too long") else path.name
        found += [f"{kind}: {what}" for what in complaints(command, kind in row.fine, row.codes, named)]
    assert not found, "\n" + "\n".join(found)


@pytest.fixture
def full_disk(small_disk) -> Path:
    """A file system of its own with one free page."""
    (small_disk / "filler").write_bytes(bytes(1020 * 1024))
    return small_disk


WRITING = {
    "shard": "shard {good}/images {full}/out --workers 1",
    "train": "train {good}/small.yaml --data {good}/blobs --run-dir {full}/run --workers 0",
    "export": "export {good}/run {full}/new.safetensors",
    "report": "report {good}/run --out {full}/report.html",
}


@pytest.mark.parametrize("command", WRITING)
def test_a_full_disk(command, good, full_disk, complaints):
    found = complaints(
        [part.format(good=good, full=full_disk) for part in WRITING[command].split()], False, (2,), "disk"
    )
    assert not found, "\n" + "\n".join(found)
