"""Evaluates and saves between optimizer steps."""

from dataclasses import dataclass
from typing import Protocol

import torch

from data.feature_store import FeatureStore
from data.reading.shards import ShardSet
from launcher.checkpoints.writer import CheckpointWriter
from launcher.engines.base import Engine
from launcher.evaluation.accuracy import measure_accuracy
from launcher.evaluation.prediction_recorder import PredictionRecorder, keep_predictions
from launcher.runs.intervals import with_interval
from launcher.runs.run_directory import RunDirectory
from launcher.training.event_log import EventLog
from launcher.training.progress import RunProgress
from recipes.schedule import StepSchedule

# Smallest batch of an evaluation in images: a forward pass alone needs far less memory than a training step.
_SMALLEST_EVALUATION_BATCH = 32


class StepHooks(Protocol):
    """What the training loop calls between steps, on all ranks together.

    Attributes:
        saves: whether `save` writes a checkpoint.
    """

    saves: bool

    def evaluate_if_due(self, step: int, micro_batch: int, progress: RunProgress) -> None:
        """Called before the first step and after each, with the number of finished steps."""

    def save_if_due(self, step: int) -> None:
        """Called after each step but the last."""

    def save(self, step: int) -> None:
        """Called after the last step."""

    def finish(self) -> None:
        """Called at the end of training."""


@dataclass
class BetweenSteps:
    """Evaluates and saves when either is due. All ranks call every method together.

    Attributes:
        features: those of the validation images, if the head alone trains; None: the model sees images.
        run: keeps the mistakes of the last evaluation.
        best_accuracy: the highest top-1 of all evaluations of the run so far, earlier starts included.
    """

    engine: Engine
    schedule: StepSchedule
    shards: ShardSet
    writer: CheckpointWriter
    log: EventLog
    workers: int
    run: RunDirectory
    features: FeatureStore | None = None
    best_accuracy: float = 0.0
    saves: bool = True

    def evaluate_if_due(self, step: int, micro_batch: int, progress: RunProgress) -> None:
        """Evaluate every `run.evaluate_every` epochs and at the end; save a checkpoint if the accuracy is the best."""
        if not self._evaluation_is_due(step):
            return
        engine, split, recipe = self.engine, self.shards.split("val"), self.engine.recipe
        size = max(_SMALLEST_EVALUATION_BATCH, micro_batch)
        arguments = (engine.module, split, recipe, engine.accelerator, size, self.workers)
        recorder, kind = PredictionRecorder(), "raw"
        raw = measure_accuracy(*arguments, recorder, self.features)
        accuracy = raw.top1
        values = raw.to_dict() | {"ema_top1": None, "ema_top5": None}
        line = f"epoch {step / self.schedule.steps_per_epoch:g}  top-1 {with_interval(raw.top1, raw.images)}"
        if recipe.ema.decay is not None:
            with engine.ema_weights():
                recorder, kind = PredictionRecorder(), "EMA"
                averaged = measure_accuracy(*arguments, recorder, self.features)
            values |= {"ema_top1": averaged.top1, "ema_top5": averaged.top5}
            line += f"  EMA weights {with_interval(averaged.top1, raw.images)}"
            accuracy = max(accuracy, averaged.top1)
        progress.say(f"{line}  ({raw.images:,} images)")
        self.log.write("evaluation", step, **values)
        if step == self.schedule.total_steps:
            recorder.gather(engine.accelerator)
            if engine.is_main:
                keep_predictions(self.run, recorder, self.shards, split, kind, step)
        if accuracy > self.best_accuracy:
            self.best_accuracy, self.writer.retention.best = accuracy, step
            self.save(step)

    def save_if_due(self, step: int) -> None:
        """Save every `run.save_every` steps, and at the steps whose checkpoints are never deleted."""
        kept_every = self.writer.retention.every
        if step % self.engine.recipe.run.save_every == 0 or (kept_every and step % kept_every == 0):
            self.save(step)

    def save(self, step: int) -> None:
        """Start to write a checkpoint of the state after `step` finished steps, unless there is one already.

        Raises:
            UserError: the save before this one failed.
        """
        engine = self.engine
        metadata = {"identity": engine.recipe.identity(), "dataset": self.shards.digest}
        stall = self.writer.save(step, engine.state(), engine.scalars(), engine.shapes, metadata)
        if stall is not None:
            self.log.write("checkpoint", step, stall_seconds=round(stall, 4))

    def finish(self) -> None:
        """Wait for the last save.

        Raises:
            UserError: it failed.
        """
        self.writer.wait()

    def _evaluation_is_due(self, step: int) -> bool:
        if "val" not in self.shards.splits or step == 0:
            return False
        steps_between = self.schedule.steps_per_epoch * self.engine.recipe.run.evaluate_every
        if step % steps_between and step != self.schedule.total_steps:
            return False
        # A run that is killed during an evaluation has the step's checkpoint but no result, so the next start evaluates
        # it. The main process decides, because ranks that disagreed would wait for each other for ever.
        done = torch.zeros(1, device=self.engine.accelerator.device)
        if self.engine.is_main:
            done += any(event["event"] == "evaluation" and event["step"] == step for event in self.log.metrics.recent())
        return self.engine.sum(done).item() == 0
