"""The training loop: runs a recipe's optimizer steps on an engine, from any step on.

Everything about a step follows from its number: the samples, their augmentation, the masks, the learning rate, and
whether to evaluate or save. So the engine's state and the step are the whole state of the loop, and a run resumes from
these two.
"""

import math
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.batches import MicroBatch, MicroBatches
from data.feature_batches import FeatureBatches
from data.feature_store import FeatureStore
from data.input_digest import INPUT_KINDS, input_record
from data.loader import load_in_order
from data.on_device import DevicePreprocessor
from data.prefetch import prefetch_to_device
from data.reading.shards import ShardSet
from launcher.cut import Cut, unit_of_cut
from launcher.engines.base import Engine
from launcher.engines.out_of_memory import is_out_of_memory
from launcher.runs.noise_scale import RecentNoise
from launcher.training.audit import Audit
from launcher.training.evaluate_and_save import StepHooks
from launcher.training.event_log import EventLog
from launcher.training.fit_micro_batch import OutOfMemory, oom_error, oom_on_any_rank, shrink_after_oom
from launcher.training.noise_meter import NoiseMeter
from launcher.training.not_finite import not_finite_error
from launcher.training.progress import RunProgress
from launcher.training.step_profile import StepProfile, marked
from launcher.training.stop_request import StopRequest
from launcher.training.unreadable import UnreadableImages
from models.custom_loss import checked_losses, load_custom_loss
from models.loss import image_losses, soft_targets
from models.prepared import PreparedModel
from recipes.schedule import StepSchedule
from recipes.user_code import running


@dataclass
class Training:
    """One rank's part of a run; `launcher.training.train` assembles it.

    Attributes:
        between_steps: evaluates and saves.
        features: those of the training images, if the head alone trains on them; None: the model sees images.
        end: the number of finished steps at which training ends; None: that of the schedule.
        audit_every: steps between audits (`launcher.training.audit`); None: none.
    """

    engine: Engine
    model: PreparedModel
    schedule: StepSchedule
    cut: Cut
    shards: ShardSet
    between_steps: StepHooks
    log: EventLog
    workers: int
    features: FeatureStore | None = None
    profile: StepProfile | None = None
    end: int | None = None
    audit_every: int | None = None

    def __post_init__(self) -> None:
        self.recipe = self.engine.recipe
        self.device = self.engine.accelerator.device
        self.preprocessor = DevicePreprocessor(self.recipe, self.device)
        self.unreadable = UnreadableImages(self.recipe, self.shards.root)
        self.custom_loss = load_custom_loss(self.recipe)
        self.noise_meter = NoiseMeter(self.engine, self.cut, self.model.has_batch_norm)
        self.recent_noise = RecentNoise(self.log.metrics.recent() if self.engine.is_main else [])
        self.audit: Audit | None = None
        # Whether a step has succeeded with the optimizer's state in memory. All later steps take the same memory.
        self.fits = False

    def train(self, step: int) -> int:
        """Train from `step` finished steps to the end or a stop request; return the steps finished.

        Raises:
            UserError: the loss is not finite, too many images are unreadable, memory is short, or a save failed.
            WrongResult: an audit has found that a rank computes wrongly.
        """
        total = self._last_step
        if self.audit_every:
            self.audit = Audit(self.audit_every, step, self.engine, self.model, self._image_losses)
        self.engine.warm_up_ddp_buckets(self._blank_images())
        batches = self._batches(step)
        with (
            RunProgress(total, step, self.engine.is_main) as progress,
            StopRequest(progress, self.between_steps.saves) as stop,
        ):
            while True:
                self.between_steps.evaluate_if_due(step, self.cut.micro_batch, progress)
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
                    raise oom_error(self.recipe, self.cut, self._unit, f"in step {step}") from None
                if ran_out:  # not inside `except`, where the traceback keeps the activations of the failed pass alive
                    batches.close()
                    self._shrink_micro_batch(step, progress)
                    batches = self._batches(step)
                    continue
                step += 1
                if self.profile:
                    self.profile.after_step()
                if step == total or stop.agreed:
                    self.between_steps.save(step)
                else:
                    self.between_steps.save_if_due(step)
            self.between_steps.finish()
            if self.profile:
                self.profile.close()
        return step

    @property
    def _last_step(self) -> int:
        return self.schedule.total_steps if self.end is None else self.end

    @property
    def _unit(self) -> int:
        """The unit of a micro-batch in images (`unit_of_cut`)."""
        return unit_of_cut(self.recipe, self.model.has_batch_norm)

    def _batches(self, step: int) -> Generator[MicroBatch, None, None]:
        """Yield this rank's micro-batches from `step` on, on its device."""
        steps = range(step, self._last_step)
        places = ((each, number) for each in steps for number in self._micro_batch_numbers(each))
        return self._loaded(places, self.workers)

    def _micro_batch_numbers(self, step: int) -> Iterator[int]:
        """Yield the numbers of this rank's micro-batches of a step, then of those that it repeats in an audit."""
        yield from self.cut.micro_batches(self.engine.accelerator.process_index)
        if self.audit and self.audit.is_due(step):
            yield from self.cut.micro_batches(self.audit.peer)

    def _share(self, step: int, rank: int) -> Iterator[MicroBatch]:
        """Yield the micro-batches of any rank's share of a step, loaded in this process."""
        return self._loaded(((step, place) for place in self.cut.micro_batches(rank)), workers=0)

    def _loaded(self, places: Iterable[tuple[int, int]], workers: int) -> Generator[MicroBatch, None, None]:
        """Yield the micro-batches at (step, number in the global batch), on this rank's device."""
        arguments = (self.shards.split("train"), self.recipe, 0, self.cut.micro_batch)
        dataset = FeatureBatches(self.features, *arguments) if self.features else MicroBatches(*arguments)
        loaded = load_in_order(dataset, places, 0 if self.features else workers, pin=self.device.type == "cuda")
        return prefetch_to_device(loaded, self.device)

    def _blank_images(self) -> Tensor:
        """Return zeros of the shape of a micro-batch's images or features, float32, and draw masks for them."""
        if self.features:
            row = self.features.rows(np.zeros(1, np.int64))["features"]
            return torch.zeros(self.cut.micro_batch, row.shape[1], device=self.device)
        size = self.recipe.input.size
        self.model.drop_path.draw(0, torch.arange(self.cut.micro_batch, device=self.device))
        images = torch.zeros(self.cut.micro_batch, 3, size, size, device=self.device)
        return images.contiguous(memory_format=torch.channels_last)

    def _shrink_micro_batch(self, step: int, progress: RunProgress) -> None:
        """Halve the micro-batch, after all ranks have agreed that one of them ran out of memory in `step`."""
        self.engine.zero_grad()
        if self.model.bn_stats:
            self.model.bn_stats.forget()
        self.cut = shrink_after_oom(self.recipe, self.cut, self._unit, f"in step {step}", progress.say)
        self.noise_meter = NoiseMeter(self.engine, self.cut, self.model.has_batch_norm)
        if self.profile:
            self.profile.begin_anew(self.cut)
        if self.engine.is_main:
            self.log.metrics.append("cut", step, cut=str(self.cut))

    def _step(self, step: int, batches: Iterator[MicroBatch], progress: RunProgress, stop_wanted: bool) -> bool:
        """Do optimizer step `step`; return whether any rank was asked to stop."""
        engine, started, waited = self.engine, time.perf_counter(), 0.0
        lr, weight_decay = self.schedule.lr(step), self.schedule.weight_decay(step)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self.device)
        replaced: list[str] = []
        digests, masks = [0] * (len(INPUT_KINDS) - 1), torch.zeros((), dtype=torch.int64, device=self.device)
        # Until a step is known to fit into memory, ranks all-reduce only after all of them have processed their
        # micro-batches. Otherwise a rank that runs out of memory would leave the others waiting in an all-reduce.
        unsynced = engine.syncs_on_last_micro_batch_only and not self.fits
        was_updated = engine.updates > 0  # the optimizer's state, which the first update allocates, is in memory
        audit = self.audit if self.audit and self.audit.is_due(step) else None
        memory_guard = oom_on_any_rank(engine.accelerator) if unsynced else nullcontext()
        with memory_guard, audit.digest if audit else nullcontext():
            for number in range(self.cut.accumulation):
                if self.profile:
                    self.profile.before_micro_batch()
                asked = time.perf_counter()
                with marked("data wait"):
                    batch = next(batches)
                waited += time.perf_counter() - asked
                replaced += batch.replaced
                digests = [total + own for total, own in zip(digests, batch.digest)]
                loss_sum += self._micro_batch(batch, last=number == self.cut.accumulation - 1 and not unsynced)
                self.noise_meter.after_micro_batch(number)
                masks += self.model.drop_path.digest(batch.weights)
        if unsynced:
            engine.all_reduce_gradients(self._blank_images())
        if audit:
            own = audit.result(digests, masks, loss_sum)
            audit.check(step, own, islice(batches, self.cut.accumulation), partial(self._share, step))
        if self.model.bn_stats:
            self.model.bn_stats.update(engine.sum)
        # One all-reduce gives every rank the loss, the number of ranks that were asked to stop, the number of
        # unreadable images, the digest of the inputs, and the squared norm of the parts' gradients. Its result is read
        # only after the update has been queued, together with the norm of the gradient, so that the GPU does not idle
        # before the update.
        with marked("agreement"):
            # `new_full` creates the numbers on the device; a copy from the host would wait for the device.
            flags = (loss_sum.new_full((), float(number)) for number in (stop_wanted, len(replaced), *digests))
            agreed = engine.sum(torch.stack([loss_sum, *flags, masks.double(), self.noise_meter.part_square()]))
        ema_decay = engine.next_ema_decay
        with marked("update"):
            engine.update(lr, weight_decay)
        with marked("agreement"):
            norm = engine.gradient_norm.to(self.device).reshape(1)
            loss, stops, replaced_on_all, *inputs, part_square, gradient_norm = torch.cat([agreed, norm]).tolist()
        loss /= self.recipe.batch.global_
        if not math.isfinite(loss):
            raise not_finite_error(self.recipe, self.shards.root, loss, step, was_updated)
        self.fits |= was_updated
        self.unreadable.add_step(replaced, int(replaced_on_all), progress)
        constant = self.recipe.optimizer.weight_decay
        decays = {"weight_decay": constant if weight_decay is None else weight_decay, "ema_decay": ema_decay}
        record = {"loss": loss, "lr": lr, **decays, **self._gradient_record(gradient_norm, part_square)}
        record |= {"inputs": input_record(inputs), "replaced": int(replaced_on_all)}
        self._report_step(step + 1, record, time.perf_counter() - started, waited, progress)
        return stops > 0

    def _micro_batch(self, batch: MicroBatch, last: bool) -> Tensor:
        """Accumulate one micro-batch's gradient; return the sum of its losses, a float64 scalar on the device."""
        engine = self.engine
        with engine.micro_batch(last_of_step=last):
            with marked("forward"):
                losses = self._image_losses(batch, engine.forward)
            with marked("backward"):
                engine.backward(losses.sum() * engine.micro_batch_weight)
        if self.model.bn_stats:
            self.model.bn_stats.add(batch.real // self.recipe.batch.statistics_size)
        return losses.detach().double().sum()

    def _image_losses(self, batch: MicroBatch, forward: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the loss of each image, float32 ``[n]``; 0 for padding.

        Args:
            batch: a micro-batch on the device.
            forward: returns the logits of its images, after the masks have been drawn.
        """
        self.model.drop_path.draw(batch.step, batch.positions)
        logits = forward(batch.pixels if self.features else self.preprocessor.images(batch))
        labels = (batch.labels, batch.partner_labels, batch.lam)
        if self.custom_loss is None:
            return image_losses(logits, *labels, batch.weights, self.recipe.loss)
        targets = soft_targets(*labels, logits.shape[1], self.recipe.loss.smoothing)
        with running(f"loss {self.recipe.code.loss}", passes=is_out_of_memory):
            losses = self.custom_loss(logits.float(), targets)
        return batch.weights * checked_losses(losses, len(logits)).float()

    def _gradient_record(self, norm: float, part_square: float) -> dict[str, float | None]:
        """Return what the record of a step says about the gradient of the global batch, whose norm is `norm`."""
        # JSON has no infinity, which is the norm of a gradient that overflowed in fp16.
        record = {"gradient_norm": norm if math.isfinite(norm) else None}
        estimate = self.noise_meter.estimate(part_square, norm)
        return record | self.recent_noise.add(estimate) if estimate else record

    def _report_step(
        self, step: int, record: dict[str, Any], seconds: float, waited: float, progress: RunProgress
    ) -> None:
        """Log and show one step, which took `seconds`; this rank waited for data during `waited` of them."""
        speed, wait = self.recipe.batch.global_ / seconds, waited / seconds
        self.log.write("step", step, **record, images_per_second=round(speed, 2), data_wait=round(wait, 4))
        progress.step(step, step / self.schedule.steps_per_epoch, record["loss"], record["lr"], speed, wait)
