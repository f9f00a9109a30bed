"""A line of ``metrics.jsonl`` with a wrong or a missing value never shows a traceback, in any command that reads it."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest

from launcher.experiments.replay_plan import plan_replay
from launcher.runs.metrics import Metrics
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError

MISSING = object()
DAMAGE = {
    "null": None,
    "text": "text",
    "list": [1],
    "negative": -1,
    "zero": 0,
    "large": 1e99,
    "huge": 10**400,
    "infinite": float("inf"),
    "NaN": float("nan"),
    "true": True,
    "missing": MISSING,
}
# What versions after 0.1.0 recorded beside it.
LATER = {
    "start": {"versions": {"torch": "2"}, "code": "0", "own_code": "0"},
    "cut": {"cut": "16 = 1 process × 8 × 2 accumulation steps"},
    "step": {
        "weight_decay": 0.1,
        "ema_decay": 0.9,
        "inputs": "0-1-2-3-4",
        "gradient_norm": 1.0,
        "gradient_signal": 1.0,
        "gradient_noise": 1.0,
        "noise_scale": 1.0,
    },
    "evaluation": {},
}
COMMANDS = (
    "report {folder}/one {folder}/other --out {folder}/report.html",
    "runs {folder}",
    "diff {folder}/one {folder}/other",
    "branch {folder}/one {folder}/new",
    "export {folder}/one {folder}/new.safetensors --best",
    "submit {folder}/../small.yaml --data {folder}/../blobs --cluster local --dry-run --run-dir {folder}/next",
)


def events_of(run: Path) -> list[dict]:
    """The events of a saved run with all keys that a start, a cut, a step and an evaluation can have."""
    events = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    events.insert(1, {"event": "cut", "time": events[0]["time"], "step": 0})
    return [event | LATER.get(event["event"], {}) for event in events]


def write_events(run: Path, events: list[dict]) -> None:
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))


@pytest.fixture
def runs(good) -> Path:
    """A folder with a run and a copy of it."""
    folder = good / "runs"
    folder.mkdir()
    for name in ("one", "other"):
        write_events(Path(shutil.copytree(good / "run", folder / name)), events_of(good / "run"))
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", LATER)
def test_a_wrong_or_missing_value_in_every_event_of_a_kind(kind, runs, complaints):
    events, tried, found = events_of(runs / "one"), [], []
    for key in dict.fromkeys(key for event in events if event["event"] == kind for key in event):
        for damage, value in DAMAGE.items():
            changed = [event | {key: value} if event["event"] == kind else event for event in events]
            write_events(runs / "one", [{k: v for k, v in event.items() if v is not MISSING} for event in changed])
            read = Metrics(runs / "one" / "metrics.jsonl").events()
            if repr(read) not in tried:  # most damages have the same effect: the events are skipped
                tried.append(repr(read))
                found += [f"{kind}, {key} {damage}: {what}" for what in complaints_about(runs, complaints)]
    assert not found, "\n" + "\n".join(found)


def test_events_with_nothing_but_their_step(runs, complaints):
    write_events(
        runs / "one", [{key: one[key] for key in ("event", "time", "step")} for one in events_of(runs / "one")]
    )
    assert not complaints_about(runs, complaints)


def complaints_about(runs: Path, complaints) -> list[str]:
    found = []
    for command in COMMANDS:
        arguments = [part.format(folder=runs) for part in command.split()]
        found += [f"{command}: {what}" for what in complaints(arguments, True, (0, 1, 2))]
        shutil.rmtree(runs / "new", ignore_errors=True)
    with contextlib.suppress(UserError):
        assert plan_replay(RunDirectory(runs / "one"), step=7, steps=2).processes_then > 0
    return found
