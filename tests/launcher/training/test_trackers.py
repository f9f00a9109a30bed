"""Trackers show the curves of a run in one run of theirs, whatever starts it had, and never end it."""

import threading
from pathlib import Path

import pytest
from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker, register_tracker_class

from launcher.runs.run_directory import RunDirectory
from launcher.training import trackers
from launcher.training.loop import Training
from launcher.training.train import StartOptions, train
from recipes.errors import UserError

STEPS = 2


class Recorder(GeneralTracker):
    """A tracker as a user registers one with Accelerate."""

    name = "recorder"
    requires_logging_directory = False
    logged: list[tuple[int, dict]] = []

    def __init__(self, project, **_):
        super().__init__()

    @property
    def tracker(self):
        return self

    def start(self):
        pass

    def store_init_configuration(self, values):
        self.configuration = values

    def log(self, values, step=None, **_):
        self.logged.append((step, values))

    def finish(self):
        self.logged.append((None, {}))


class Failing(Recorder):
    name = "failing"

    def log(self, values, step=None, **_):
        raise ConnectionError("the server is down\nand more lines")


class Hanging(Recorder):
    name = "hanging"

    def start(self):
        threading.Event().wait()


@pytest.fixture(autouse=True)
def registered():
    known = dict(LOGGER_TYPE_TO_CLASS)
    for kind in (Recorder, Failing, Hanging):
        kind.logged = []
        register_tracker_class(kind)
    yield
    LOGGER_TYPE_TO_CLASS.clear()
    LOGGER_TYPE_TO_CLASS.update(known)


@pytest.fixture
def recipe(small_recipe):
    few = ("batch.global=512", "schedule.epochs=1", "schedule.warmup_epochs=0")
    return lambda *changes: small_recipe(*few, *changes)


def run_of(recipe, folder: Path) -> RunDirectory:
    assert train(recipe, folder, StartOptions(workers=0))
    return RunDirectory(folder)


def stop_after(step: int, monkeypatch, recipe, folder: Path) -> None:
    do_step = Training._step
    with monkeypatch.context() as patch:
        patch.setattr(Training, "_step", lambda self, number, *rest: do_step(self, number, *rest) or number + 1 >= step)
        assert not train(recipe, folder, StartOptions(workers=0))


def curve(run: RunDirectory) -> list[tuple[int, float]]:
    return [(event["step"], event["loss"]) for event in run.metrics.events() if event["event"] == "step"]


@pytest.mark.slow
def test_a_resumed_run_goes_on_in_the_same_run_of_mlflow_and_of_wandb(recipe, tmp_path, monkeypatch):
    """Weights & Biases is offline, MLflow keeps its runs in files."""
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    chosen = recipe("run.trackers=[wandb, mlflow]")
    stop_after(1, monkeypatch, chosen, tmp_path / "run")
    run = run_of(chosen, tmp_path / "run")

    [theirs] = mlflow.search_runs(search_all_experiments=True, output_format="list")
    assert theirs.info.run_id == (run.trackers / "mlflow.id").read_text()
    assert (theirs.info.run_name, theirs.info.status) == ("run", "FINISHED")
    assert theirs.data.params["optimizer.lr"] == str(chosen.optimizer.lr)
    client = mlflow.MlflowClient()
    losses = [(one.step, one.value) for one in client.get_metric_history(theirs.info.run_id, "step/loss")]
    assert losses == curve(run) and len(losses) == STEPS
    assert client.get_metric_history(theirs.info.run_id, "evaluation/top1")[0].step == STEPS

    written = sorted(run.trackers.glob("wandb/offline-run-*/run-*.wandb"))
    assert len(written) == 2  # one for each start, which `wandb sync` joins because of their id
    assert {file.name for file in written} == {f"run-{(run.trackers / 'wandb.id').read_text()}.wandb"}
    assert all(b"step/loss" in file.read_bytes() for file in written)
    assert not run.tensorboard.exists()


def test_tensorboard_has_each_step_of_a_resumed_run_once(recipe, tmp_path, monkeypatch):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    chosen = recipe()
    stop_after(1, monkeypatch, chosen, tmp_path / "run")
    run = run_of(chosen, tmp_path / "run")
    found = EventAccumulator(str(run.tensorboard / "curves")).Reload()
    assert [(one.step, pytest.approx(one.value)) for one in found.Scalars("step/loss")] == curve(run)


def test_a_tracker_that_fails_or_hangs_is_named_once_and_ends_neither_the_run_nor_another_tracker(
    recipe, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(trackers, "_PATIENCE", 0.1)
    run = run_of(recipe("run.trackers=[failing, hanging, recorder]"), tmp_path / "run")
    errors = capfd.readouterr().err
    for name, reason in (("failing", "the server is down"), ("hanging", "not sent its last values")):
        [line] = [line for line in errors.splitlines() if f"{name} failed" in line]
        assert line.startswith("warning: ") and reason in line and str(run.metrics.path) in line
    recorded = [(step, values["step/loss"]) for step, values in Recorder.logged if "step/loss" in values]
    assert recorded == curve(run) and Recorder.logged[-1] == (None, {})


def test_a_tracker_that_is_unknown_or_not_installed_is_refused_before_the_run_begins(recipe, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for name, expected in (
        ("tensorbord", "not a tracker of Accelerate"),
        ("wandb", r"pip install 'bigbatch\[wandb\]'"),
    ):
        with pytest.raises(UserError, match=expected):
            train(recipe(f"run.trackers=[{name}]"), tmp_path / "run", StartOptions(workers=0))
    assert not (tmp_path / "run").exists()
