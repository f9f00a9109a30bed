"""The log of a run survives kills, is read from its end when it is long, and says which weights were best."""

import json
from pathlib import Path

import pytest

from launcher.runs.metrics import BestAccuracy, Metrics, best_accuracy
from recipes.errors import UserError


@pytest.fixture
def metrics(tmp_path) -> Metrics:
    log = Metrics(tmp_path / "metrics.jsonl")
    for step in range(1, 6):
        log.append("step", step, loss=1 / step)
    return log


def test_events_come_back_as_they_were_appended(metrics):
    assert [(event["event"], event["step"], event["loss"]) for event in metrics.events()] == [
        ("step", step, 1 / step) for step in range(1, 6)
    ]
    assert metrics.recent() == metrics.events()


def test_lines_that_are_no_events_are_left_out(metrics):
    """A kill tears the last line; an older or another program may have left anything else."""
    torn = '{"event": "step", "st'
    lines = metrics.path.read_text().splitlines(keepends=True)
    metrics.path.write_bytes("".join(["\n", "7\n", "[]\n", "{}\n", *lines, torn]).encode() + b"\xff\xfe")
    assert (
        [event["step"] for event in metrics.events()]
        == [event["step"] for event in metrics.recent()]
        == [1, 2, 3, 4, 5]
    )


def test_what_comes_after_a_damaged_line_is_not_lost_by_a_restart(metrics):
    lines = metrics.path.read_text().splitlines()
    metrics.path.write_text("\n".join([lines[0], "torn", *lines[1:]]) + "\n")
    metrics.truncate_after(4)
    assert [event["step"] for event in metrics.events()] == [1, 2, 3, 4]


def test_the_end_of_a_long_log_is_read_without_the_rest(tmp_path):
    """A run of ImageNet logs 375,000 steps, and every evaluation asks whether it was done before."""
    metrics = Metrics(tmp_path / "metrics.jsonl")
    lines = [
        json.dumps({"event": "step", "time": 0, "step": step, "loss": 1.0, "pad": "x" * 100}) for step in range(20_000)
    ]
    metrics.path.write_text("\n".join(lines) + "\n")
    recent = [event["step"] for event in metrics.recent()]
    assert recent == list(range(recent[0], 20_000)) and 1_000 < len(recent) < 6_000


def test_a_run_without_a_log_has_no_events(tmp_path):
    metrics = Metrics(tmp_path / "none.jsonl")
    assert metrics.events() == metrics.recent() == [] and metrics.best() is None


def evaluation(step: int, raw: float, ema: float | None = None) -> dict:
    return {"event": "evaluation", "time": 0, "step": step, "top1": raw, "ema_top1": ema}


@pytest.mark.parametrize(
    "evaluations, best",
    [
        ([], None),
        ([evaluation(1, 0.5)], BestAccuracy(0.5, "raw", 1)),
        ([evaluation(1, 0.75, 0.125)], BestAccuracy(0.75, "raw", 1)),
        ([evaluation(1, 0.5, 0.6), evaluation(2, 0.4, 0.7)], BestAccuracy(0.7, "EMA", 2)),
        ([evaluation(1, 0.5, 0.5), evaluation(2, 0.5, 0.5)], BestAccuracy(0.5, "EMA", 1)),
        ([evaluation(1, 0.0, None)], BestAccuracy(0.0, "raw", 1)),
    ],
)
def test_the_best_accuracy_is_of_the_better_weights_and_first_reached(evaluations, best):
    assert best_accuracy(evaluations) == best


def test_the_best_of_one_kind_of_weights(metrics):
    evaluations = [evaluation(1, 0.75, 0.125), evaluation(2, 0.5, 0.25)]
    assert best_accuracy(evaluations, ["EMA"]) == BestAccuracy(0.25, "EMA", 2)


def test_a_log_that_cannot_be_read_or_written_is_one_sentence(tmp_path):
    (tmp_path / "metrics.jsonl").mkdir()
    metrics = Metrics(tmp_path / "metrics.jsonl")
    for use in (metrics.events, metrics.recent, lambda: metrics.append("step", 1), lambda: metrics.truncate_after(1)):
        with pytest.raises(UserError, match=r"metrics\.jsonl cannot be (read|written)"):
            use()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_one_sentence(tmp_path):
    metrics = Metrics(tmp_path / "metrics.jsonl")
    metrics.path.symlink_to("/dev/full")
    with pytest.raises(UserError, match="No space left"):
        metrics.append("step", 1)


@pytest.mark.parametrize(
    "key, values",
    [
        ("event", [None, 1, ["step"]]),
        ("time", [None, "now", -1, 1e12, True]),
        ("step", [None, "1", 1.5, -1, [1], True]),
        ("loss", [None, "low", [1.0], True]),
        ("lr", [None, "low", float("nan"), 10**400]),
        ("gradient_norm", ["low", -1, [1.0]]),
        ("noise_scale", ["low", 0, -1]),
        ("images_per_second", [None, "fast", -1]),
        ("top1", ["good", 1.5, -1]),
        ("images", [None, "many", -1, 1.5]),
        ("inputs", [None, 1]),
        ("precision", [None, ["bf16"]]),
        ("versions", [None, "2", {"torch": 2}]),
    ],
)
def test_an_event_with_a_value_of_another_type_is_left_out(metrics, key, values):
    """A disk or a script may have changed a digit; such a line is skipped as one that a kill tore is."""
    event = {"event": "step", "time": 0, "step": 6}
    with metrics.path.open("a") as file:
        file.writelines(json.dumps(event | {key: value}) + "\n" for value in values)
    assert [event["step"] for event in metrics.events()] == [1, 2, 3, 4, 5]


def test_what_training_writes_without_a_value_is_an_event(metrics):
    """A gradient that overflowed has no norm, a run without EMA no decay, and a diverged EMA a loss that is NaN."""
    metrics.append("step", 6, gradient_norm=None, ema_decay=None, noise_scale=None, loss=float("nan"), later=[1])
    metrics.append("step", 7, gradient_norm=float("inf"), gradient_noise=float("nan"))  # overflowed in bf16
    assert [event["step"] for event in metrics.events()[-2:]] == [6, 7]
