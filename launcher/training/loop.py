"""The training loop: step after step of a recipe on an engine, from any step on.

Everything that happens at a step follows from the step's number: the samples, their augmentation, the masks, the learning
rate, whether to evaluate or save. So the loop has no state but the engine's and the step.
"""

import math
import signal
import time
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from accelerate.utils import gather_object
from torch import Tensor

from data.batches import MicroBatch, MicroBatches
from data.loader import load_steps
from data.on_device import DevicePreprocessor
from data.prefetch import prefetch_to_device
from data.reading.shards import ShardSet
from launcher.checkpoints.writer import CheckpointWriter
from launcher.cut import Cut, unit_of_cut
from launcher.engines.base import Engine
from launcher.engines.out_of_memory import is_out_of_memory
from launcher.evaluation.accuracy import evaluate
from launcher.runs.run_directory import RunDirectory
from launcher.training.fit_micro_batch import OutOfMemory, oom_error, oom_on_any_rank, shrink_after_oom
from launcher.training.progress import RunProgress
from launcher.training.step_profile import StepProfile, marked
from models.batch_norm import RunningStatistics
from models.loss import mixed_cross_entropy
from models.stochastic_depth import StochasticDepth
from recipes.errors import UserError
from recipes.schedule import StepSchedule

_REPLACED_NAMED = 20  # unreadable photographs named in the log of one process; all are counted
_SEEN_AT_LEAST = 1000  # photographs over which the share of unreadable ones is taken


@dataclass
class Training:
    """All that a run needs, put together by `launcher.train`."""

    engine: Engine
    drop_path: StochasticDepth
    bn_stats: RunningStatistics | None
    schedule: StepSchedule
    cut: Cut
    shards: ShardSet
    run: RunDirectory
    writer: CheckpointWriter
    workers: int
    best_accuracy: float = 0.0  # of the evaluations before this start
    profile: StepProfile | None = None

    def __post_init__(self):
        self.recipe = self.engine.recipe
        self.preprocessor = DevicePreprocessor(self.recipe, self.engine.accelerator.device)
        self.replaced = 0
        self.seen = 0
        self.replaced_names: list[str] = []
        self.fits = False  # a step went through with the optimizer's state in memory

    def train(self, step: int) -> int:
        """Train from `step` finished steps to the end of the schedule, or until interrupted; return the steps finished.

        Raises:
            UserError: the loss is not finite, or a checkpoint cannot be written.
        """
        total = self.schedule.total_steps
        self.engine.warm_up_ddp_buckets(self._blank_images())
        batches = self._batches(step)
        with RunProgress(total, step, self.engine.is_main) as progress, _StopRequest(progress) as stop:
            while True:
                if self._evaluation_is_due(step):
                    self._evaluate(step, progress)
                if step == total or stop.agreed:
                    break
                ran_out = False
                try:
                    stop.agreed = self._step(step, batches, progress, stop.wanted)
                except OutOfMemory:
                    ran_out = True
                except RuntimeError as error:
                    if self.fits or not is_out_of_memory(error):
                        raise
                    raise oom_error(self.recipe, self.cut, self._statistics_size, f"in step {step}") from None
                if ran_out:  # out here nothing holds on to what was computed
                    batches.close()
                    self._take_fewer_images(step, progress)
                    batches = self._batches(step)
                    continue
                step += 1
                if self.profile:
                    self.profile.after_step()
                if step == total or stop.agreed or self._save_is_due(step):
                    self._save(step)
            self.writer.wait()
            if self.profile:
                self.profile.close()
        return step

    @property
    def _statistics_size(self) -> int:
        """A micro-batch holds a whole number of these."""
        return unit_of_cut(self.recipe, has_batch_norm=self.bn_stats is not None)

    def _batches(self, step: int) -> Iterator[MicroBatch]:
        """The micro-batches of this process from `step` on, on its device."""
        device = self.engine.accelerator.device
        first = self.cut.first_position(self.engine.accelerator.process_index)
        dataset = MicroBatches(self.shards.split("train"), self.recipe, first, self.cut.micro_batch)
        steps = range(step, self.schedule.total_steps)
        return prefetch_to_device(
            load_steps(dataset, steps, self.cut.accumulation, self.workers, pin=device.type == "cuda"), device
        )

    def _blank_images(self) -> Tensor:
        """Images of a micro-batch's shape, with masks drawn for them."""
        device, size = self.engine.accelerator.device, self.recipe.input.size
        self.drop_path.draw(0, torch.arange(self.cut.micro_batch, device=device))
        images = torch.zeros(self.cut.micro_batch, 3, size, size, device=device)
        return images.contiguous(memory_format=torch.channels_last)

    def _take_fewer_images(self, step: int, progress: RunProgress) -> None:
        """After all processes agreed that one of them ran out of memory in `step`."""
        self.engine.zero_grad()
        if self.bn_stats:
            self.bn_stats.forget()
        self.cut = shrink_after_oom(self.recipe, self.cut, self._statistics_size, f"in step {step}", progress.say)
        if self.profile:
            self.profile.begin_anew(self.cut)
        if self.engine.is_main:
            self.run.metrics.append("cut", step, cut=str(self.cut))

    def _step(self, step: int, batches, progress: RunProgress, stop_wanted: bool) -> bool:
        """Do optimizer step `step`; return whether any process was asked to stop."""
        engine, started, waited = self.engine, time.perf_counter(), 0.0
        lr = self.schedule.lr(step)
        device = engine.accelerator.device
        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        replaced: list[str] = []
        alone = engine.syncs_on_last_micro_batch_only and not self.fits
        fits = engine.updates > 0  # of what a step takes, the optimizer's state comes last
        with oom_on_any_rank(engine.accelerator) if alone else nullcontext():
            for number in range(self.cut.accumulation):
                if self.profile:
                    self.profile.before_micro_batch()
                asked = time.perf_counter()
                with marked("data wait"):
                    batch = next(batches)
                waited += time.perf_counter() - asked
                replaced += batch.replaced
                loss_sum += self._micro_batch(batch, last=number == self.cut.accumulation - 1 and not alone)
        if alone:
            engine.all_reduce_gradients(self._blank_images())
        if self.bn_stats:
            self.bn_stats.update(engine.sum)
        # One exchange tells every process the loss, whether one was asked to stop, and what could not be read. It is asked for after
        # the update has been started: only then does this process wait for its device, and a GPU has no gap before the update.
        with marked("agreement"):
            told = (
                loss_sum.new_full((), float(number)) for number in (stop_wanted, len(replaced))
            )  # made there, not copied there
            news = engine.sum(torch.stack([loss_sum, *told]))
        with marked("update"):
            engine.update(lr)
        with marked("agreement"):
            loss, stops, replaced_now = news.tolist()
        loss /= self.recipe.batch.global_
        if not math.isfinite(loss):
            raise UserError(
                f"the loss of step {step} is {loss}: nothing is saved from there on; a lower optimizer.lr, a longer warm-up or "
                f"optimizer.clip_grad=1 usually helps"
            )
        self.fits |= fits
        self._report_replaced(replaced, int(replaced_now), progress)
        seconds = time.perf_counter() - started
        self._report_step(step + 1, loss, lr, seconds, waited, int(replaced_now), progress)
        return stops > 0

    def _micro_batch(self, batch: MicroBatch, last: bool) -> Tensor:
        """Add one micro-batch's gradient; return the sum of its losses, float64 on the device."""
        engine = self.engine
        self.drop_path.draw(batch.step, batch.positions)
        with engine.micro_batch(last_of_step=last):
            with marked("forward"):
                logits = engine.forward(self.preprocessor.images(batch))
                losses = mixed_cross_entropy(
                    logits, batch.labels, batch.partner_labels, batch.lam, batch.weights, self.recipe.loss.smoothing
                )
            with marked("backward"):
                engine.backward(losses.sum() * engine.micro_batch_weight)
        if self.bn_stats:
            self.bn_stats.add(batch.real // self.recipe.batch.statistics_size)
        return losses.detach().double().sum()

    def _save_is_due(self, step: int) -> bool:
        every = self.writer.retention.every
        return step % self.recipe.run.save_every == 0 or bool(every and step % every == 0)

    def _evaluation_is_due(self, step: int) -> bool:
        if "val" not in self.shards.splits or step == 0:
            return False
        steps_between = self.schedule.steps_per_epoch * self.recipe.run.evaluate_every
        if step % steps_between and step != self.schedule.total_steps:
            return False
        # A run killed while evaluating left a checkpoint but no result: then it is made up for. The main process decides.
        done = torch.zeros(1, device=self.engine.accelerator.device)
        if self.engine.is_main:
            done += any(event["event"] == "evaluation" and event["step"] == step for event in self.run.metrics.recent())
        return self.engine.sum(done).item() == 0

    def _evaluate(self, step: int, progress: RunProgress) -> None:
        engine, split = self.engine, self.shards.split("val")
        arguments = (engine.module, split, self.recipe, engine.accelerator, max(32, self.cut.micro_batch), self.workers)
        raw = evaluate(*arguments)
        values = raw.to_dict() | {"ema_top1": None, "ema_top5": None}
        line = f"epoch {step / self.schedule.steps_per_epoch:g}  top-1 {raw.top1:.2%}"
        if self.recipe.ema.decay is not None:
            with engine.averaged_weights():
                averaged = evaluate(*arguments)
            values |= {"ema_top1": averaged.top1, "ema_top5": averaged.top5}
            line += f"  with averaged weights {averaged.top1:.2%}"
        progress.say(f"{line}  ({raw.images:,} images)")
        self._log("evaluation", step, **values)
        accuracy = max(values["top1"], values["ema_top1"] or 0.0)
        if accuracy > self.best_accuracy:
            self.best_accuracy, self.writer.retention.best = accuracy, step
            self._save(step)

    def _save(self, step: int) -> None:
        engine = self.engine
        about = {"identity": self.recipe.identity(), "dataset": self.shards.digest}
        stall = self.writer.save(step, engine.state(), engine.scalars(), engine.shapes, about)
        if stall is not None:
            self._log("checkpoint", step, stall_seconds=round(stall, 4))

    def _report_step(
        self, step: int, loss: float, lr: float, seconds: float, waited: float, replaced: int, progress: RunProgress
    ) -> None:
        speed, wait = self.recipe.batch.global_ / seconds, waited / seconds
        self._log(
            "step",
            step,
            loss=loss,
            lr=lr,
            images_per_second=round(speed, 2),
            data_wait=round(wait, 4),
            replaced=replaced,
        )
        progress.step(step, step / self.schedule.steps_per_epoch, loss, lr, speed, wait)

    def _report_replaced(self, names: list[str], everywhere: int, progress: RunProgress) -> None:
        new = [name for name in names if name not in self.replaced_names][
            : max(0, _REPLACED_NAMED - len(self.replaced_names))
        ]
        for name in new:
            progress.say(f"unreadable, another photograph takes its place: {name}")
        self.replaced_names += new
        self.replaced += everywhere
        self.seen += self.recipe.batch.global_
        # A handful is tolerated from the first step on, where a share means nothing yet.
        if self.replaced > self.recipe.run.unreadable * max(self.seen, _SEEN_AT_LEAST):
            named = "; ".join(gather_object(self.replaced_names)[:_REPLACED_NAMED])
            raise UserError(
                f"{self.replaced:,} of {self.seen:,} photographs could not be read, more than the share of run.unreadable="
                f"{self.recipe.run.unreadable:g}: run `bigbatch verify {self.shards.root}`, or allow more; {named}"
            )

    def _log(self, event: str, step: int, **values) -> None:
        if not self.engine.is_main:
            return
        self.run.metrics.append(event, step, epoch=round(step / self.schedule.steps_per_epoch, 4), **values)
        numbers = {f"{event}/{name}": value for name, value in values.items() if value is not None}
        self.engine.accelerator.log(numbers, step=step)


class _StopRequest:
    """Ctrl-C and SIGTERM ask to stop after the step at hand; a second Ctrl-C stops at once, without saving."""

    def __init__(self, progress: RunProgress):
        self.progress = progress
        self.wanted = False
        self.agreed = False

    def __enter__(self) -> "_StopRequest":
        self._before = {number: signal.signal(number, self._ask) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _ask(self, number: int, _frame) -> None:
        if self.wanted and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.wanted = True
        self.progress.say("stopping after this step, then saving; Ctrl-C again stops at once")
