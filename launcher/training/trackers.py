"""Sends a run's curves to TensorBoard, Weights & Biases, MLflow, or another tracker that Accelerate knows.

``metrics.jsonl`` holds every value, so trackers are a courtesy: one that fails is named once, and the run trains on.
"""

import importlib
import importlib.util
import os
import queue
import threading
from collections.abc import Callable
from typing import Any

from accelerate.tracking import LOGGER_TYPE_TO_CLASS, GeneralTracker
from accelerate.utils import LoggerType

from data.atomic_io import write_atomically
from data.progress import say
from launcher.runs.run_directory import RunDirectory
from recipes.errors import UserError
from recipes.schema import Recipe
from recipes.user_code import import_modules

_PROJECT = "bigbatch"  # the project or experiment to which all runs belong by default
_PATIENCE = 60.0  # seconds that a finished run waits for trackers to send their last values
_PACKAGES = {"tensorboard": "torch.utils.tensorboard"}  # what a tracker imports, where its name is not that
# How a tracker that began a run names it, so that a later start of ours continues the same one.
_RUN_ID: dict[str, Callable[[Any], str]] = {
    "wandb": lambda tracker: tracker.tracker.id,
    "mlflow": lambda tracker: tracker.tracker.info.run_id,
}


def check_trackers(recipe: Recipe) -> None:
    """Check that Accelerate knows the trackers of a recipe and that their packages are installed.

    Raises:
        UserError: it does not know one, or the package is missing; names it.
    """
    import_modules(recipe.code.modules)  # one of them may register a tracker with Accelerate
    for name in recipe.run.trackers:
        if name not in LOGGER_TYPE_TO_CLASS:
            known = ", ".join(sorted(LOGGER_TYPE_TO_CLASS))
            raise UserError(f"run.trackers has {name!r}, which is not a tracker of Accelerate: use some of {known}")
        # A tracker that the user's own module registered with Accelerate has no package of its name.
        if name in LoggerType and importlib.util.find_spec(name) is None:
            extra = f"'bigbatch[{name}]'" if name in _RUN_ID else name
            raise UserError(f"run.trackers={name} needs a package that is missing: `pip install {extra}`")


class Trackers:
    """The trackers of one start of a run; the main process makes them."""

    def __init__(self, recipe: Recipe, run: RunDirectory, step: int):
        """Start the trackers of a run that begins, or resumes after `step` finished steps."""
        self._senders = [_Sender(name, recipe, run, step) for name in dict.fromkeys(recipe.run.trackers)]

    def log(self, values: dict[str, Any], step: int) -> None:
        """Hand values after `step` finished steps to every tracker; return at once."""
        for sender in self._senders:
            sender.add(lambda tracker: tracker.log(values, step=step))

    def finish(self) -> None:
        """Wait until every tracker has sent all values and ended, or for a minute."""
        for sender in self._senders:
            sender.finish()


class _Sender:
    """One tracker, in a thread of its own.

    A server that does not answer blocks Weights & Biases for 100 seconds and MLflow for four minutes. In the training
    loop, it would make every rank wait, until the connection between them is given up.
    """

    def __init__(self, name: str, recipe: Recipe, run: RunDirectory, step: int):
        self.name, self.recipe, self.run, self.step = name, recipe, run, step
        self.failed = False
        self._calls: queue.SimpleQueue[Callable[[GeneralTracker], None] | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._send, name=f"tracker {name}", daemon=True)
        if self._is_imported():
            self._thread.start()

    def add(self, call: Callable[[GeneralTracker], None]) -> None:
        if not self.failed:
            self._calls.put(call)

    def finish(self) -> None:
        if self.failed:
            return
        self._calls.put(lambda tracker: tracker.finish())
        self._calls.put(None)
        self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            self._fail(f"it has not sent its last values within {_PATIENCE:.0f} seconds")

    def _is_imported(self) -> bool:
        """Import the tracker's package. The main thread does it: a fork during another thread's import could hang."""
        if self.name not in LoggerType:
            return True
        try:
            importlib.import_module(_PACKAGES.get(self.name, self.name))
        except Exception as error:  # whatever a package raises that is installed and broken
            self._fail(str(error) or type(error).__name__)
        return not self.failed

    def _send(self) -> None:
        try:
            tracker = self._started()
            while call := self._calls.get():
                call(tracker)
        except Exception as error:  # each tracker has errors of its own, for the network, the disk, the account, ...
            self._fail(str(error) or type(error).__name__)

    def _started(self) -> GeneralTracker:
        kind = LOGGER_TYPE_TO_CLASS[self.name]
        if self.name == "tensorboard":
            # Values of later steps, which the run had already written before it was stopped, are written again.
            tracker = kind("curves", self.run.tensorboard, purge_step=self.step + 1)
            tracker.start()
            return tracker
        folder = [self.run.trackers] if kind.requires_logging_directory else []
        id_file = self.run.trackers / f"{self.name}.id"
        run_id = id_file.read_text() if id_file.is_file() else None
        project = os.environ.get("WANDB_PROJECT", _PROJECT) if self.name == "wandb" else _PROJECT
        self.run.trackers.mkdir(exist_ok=True)
        tracker = kind(project, *folder, **self._arguments(run_id))
        tracker.start()
        if run_id is None:  # MLflow refuses values that have changed since the run began, such as those of engine
            tracker.store_init_configuration(self.recipe.dotted())
            if self.name in _RUN_ID:
                write_atomically(id_file, _RUN_ID[self.name](tracker).encode())
        if self.name == "wandb" and tracker.tracker.url:
            say(f"wandb: {tracker.tracker.url}")
        return tracker

    def _arguments(self, run_id: str | None) -> dict[str, Any]:
        """Return the arguments of a tracker's class that name the run and let it continue an earlier one."""
        name = self.run.path.resolve().name
        match self.name:
            case "wandb":
                # If it were not silent, it would ask for an account on the terminal, in the middle of the progress bar.
                settings = {"console": "off", "silent": True}
                return {"name": name, "id": run_id, "resume": "allow", "dir": self.run.trackers, "settings": settings}
            case "mlflow":
                return {"run_name": name, "run_id": run_id}
        return {}

    def _fail(self, reason: str) -> None:
        self.failed = True
        first_line = reason.splitlines()[0].rstrip(":")
        metrics = self.run.metrics.path
        say(f"warning: {self.name} failed ({first_line}): the run continues, and {metrics} has every value")
