"""Micro-batches: what a process sees of each optimizer step, computed from (seed, step, position) alone.

Asking for a micro-batch needs nothing but its step and its positions in the global batch, so there is no loader state:
resuming means asking for a later step, and worker processes only decide how early it is ready.
"""

import atexit
import multiprocessing
import signal
from collections.abc import Iterator
from dataclasses import dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from data.block_order import shuffled_in_blocks
from data.images.augment import NO_BOX, EvalTransform, TrainTransform
from data.mixing import SliceMix, partner, slice_mix
from data.order import shuffled
from data.reading.shards import Split
from recipes.errors import UserError
from recipes.randomness import random_key
from recipes.schedule import StepSchedule
from recipes.schema import Recipe

_PADDING = -1
_REPLACEMENTS_TRIED = 16


@dataclass(frozen=True)
class MicroBatch:
    """A run of consecutive positions of one global batch, before normalisation, erasing and mixing.

    ``n`` positions come first in every row-wise field; `pixels`, `erased` and `noise_keys` go on with the images of
    partners that lie outside the run.
    """

    step: int  # optimizer step, from 0
    positions: Tensor  # int64 [n], in the global batch; beyond its end: padding
    samples: Tensor  # int64 [n], row in the index of the shards; -1 for padding
    weights: Tensor  # float32 [n], 0 for padding, else 1
    pixels: Tensor  # uint8 [n + extra, 3, size, size], channels last in memory
    erased: list[tuple[int, int, int, int]]  # [n + extra], box as top, left, height, width
    noise_keys: list[int]  # [n + extra], of the noise in the erased box
    labels: Tensor  # int64 [n]
    partners: Tensor  # int64 [n], row of `pixels` to mix with
    partner_labels: Tensor  # int64 [n]
    lam: Tensor  # float32 [n], share of the own label and image
    mixes: list[tuple[int, int, SliceMix]]  # rows from, to (exclusive), and how they are mixed
    replaced: list[str] = field(default_factory=list)  # unreadable photographs, and that another took their place

    @property
    def real(self) -> int:
        """Positions that lie in the global batch; padding follows them."""
        return max((stop for _, stop, _ in self.mixes), default=0)

    def to(self, device: torch.device) -> "MicroBatch":
        """The same with all tensors on `device`, copied without waiting where memory is pinned."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "MicroBatch":
        """The same in page-locked memory; torch's DataLoader calls this."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream) -> None:
        """Tell the allocator of a GPU that this stream, too, uses the tensors."""
        for f in fields(self):
            if isinstance(getattr(self, f.name), Tensor):
                getattr(self, f.name).record_stream(stream)

    def _mapped(self, change) -> "MicroBatch":
        tensors = {f.name: getattr(self, f.name) for f in fields(self) if isinstance(getattr(self, f.name), Tensor)}
        return replace(self, **{name: change(tensor) for name, tensor in tensors.items()})


class MicroBatches(Dataset):
    """Every micro-batch of one process, by (step, number within the step)."""

    def __init__(self, split: Split, recipe: Recipe, first_position: int, micro_batch: int):
        self.split = split
        self.recipe = recipe
        self.first_position = first_position
        self.micro_batch = micro_batch
        self.steps_per_epoch = StepSchedule(recipe, len(split)).steps_per_epoch
        self.transform = TrainTransform(recipe)

    def __getitem__(self, place: tuple[int, int]) -> MicroBatch:
        step, number = place
        batch = self.recipe.batch
        first = self.first_position + number * self.micro_batch
        own = range(first, first + self.micro_batch)
        partners = [partner(position, batch.slice_size) if position < batch.global_ else position for position in own]
        mixes = self._mixes(step, own)
        mixed = any(mix != SliceMix(1.0) for _, _, mix in mixes)
        extra = sorted(set(partners) - set(own)) if mixed else []
        if not mixed:
            partners = list(own)
        row = {position: number for number, position in enumerate([*own, *extra])}

        samples = self._samples(step, list(row))
        epoch = step // self.steps_per_epoch
        size = self.recipe.input.size
        # Channels last, as decoders and resizing write them and as convolutions on a GPU want them.
        pixels = torch.zeros(len(row), size, size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        erased, replaced = [NO_BOX] * len(row), []
        self.split.read_ahead(samples[samples != _PADDING].tolist())
        for number, sample in enumerate(samples):
            if sample != _PADDING:
                of_other_cut = number >= self.micro_batch  # a partner, which counts where it is somebody's own
                bad = [] if of_other_cut else replaced
                pixels[number], erased[number], samples[number] = self._image(int(sample), epoch, bad)
        labels = torch.from_numpy(np.where(samples == _PADDING, 0, self.split.labels[samples]).astype(np.int64))
        rows_of_partners = torch.tensor([row[position] for position in partners])
        lam = torch.ones(self.micro_batch)
        for start, stop, mix in mixes:
            lam[start:stop] = mix.lam
        lam[rows_of_partners == torch.arange(self.micro_batch)] = 1.0
        return MicroBatch(
            step=step,
            positions=torch.arange(own.start, own.stop),
            samples=torch.from_numpy(samples[: self.micro_batch]),
            weights=torch.tensor([float(position < batch.global_) for position in own]),
            pixels=pixels,
            erased=erased,
            noise_keys=[random_key(self.recipe.seed, "noise", epoch, int(sample)) for sample in samples],
            labels=labels[: self.micro_batch],
            partners=rows_of_partners,
            partner_labels=labels[rows_of_partners],
            lam=lam,
            mixes=mixes,
            replaced=replaced,
        )

    def _samples(self, step: int, positions: list[int]) -> np.ndarray:
        """The sample at each position of the global batch of that step; -1 beyond its end."""
        global_batch = self.recipe.batch.global_
        positions = np.array(positions)
        real = positions < global_batch
        samples = np.full(len(positions), _PADDING, dtype=np.int64)
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        seed, count, positions = self.recipe.seed, len(self.split), positions[real]
        if self.recipe.data.shuffle == "blocks":
            samples[real] = shuffled_in_blocks(seed, epoch, count, self.recipe.batch, step_in_epoch, positions)
        else:
            samples[real] = shuffled(seed, epoch, count, step_in_epoch * global_batch + positions)
        return samples

    def _mixes(self, step: int, own: range) -> list[tuple[int, int, SliceMix]]:
        """How each run of rows that belongs to one slice is mixed; padding is not."""
        size, end = self.recipe.batch.slice_size, min(own.stop, self.recipe.batch.global_)
        found = []
        position = own.start
        while position < end:
            stop = min((position // size + 1) * size, end)
            found.append((position - own.start, stop - own.start, slice_mix(self.recipe, step, position // size)))
            position = stop
        return found

    def _image(self, sample: int, epoch: int, replaced: list[str]) -> tuple[Tensor, tuple[int, int, int, int], int]:
        """Pixels and erased box of a sample, or of the one that takes its place where it cannot be read."""
        candidate = sample
        for attempt in range(_REPLACEMENTS_TRIED):
            try:
                return *self.transform(self.split.read(candidate), epoch, candidate), candidate
            except UserError:  # storage that stays away is no bad photograph
                raise
            except Exception as error:  # whatever a decoder raises: one photograph never stops a run
                replaced.append(f"{self.split.sample_name(candidate)} ({type(error).__name__}: {error})")
                candidate = random_key(self.recipe.seed, "replacement", sample, attempt) % len(self.split)
        raise UserError(
            f"{_REPLACEMENTS_TRIED} photographs in a row could not be read, last {replaced[-1]}: run `bigbatch verify`"
        )


class EvalBatches(Dataset):
    """The evaluation images `first` to `stop` of a split in batches: uint8 pixels ``[n, 3, size, size]``, int64 labels ``[n]``."""

    def __init__(self, split: Split, recipe: Recipe, first: int, stop: int, batch_size: int):
        self.split = split
        self.transform = EvalTransform(recipe)
        self.chunks = [range(start, min(start + batch_size, stop)) for start in range(first, stop, batch_size)]

    def __len__(self) -> int:
        return len(self.chunks)

    def __getitem__(self, number: int) -> tuple[Tensor, Tensor]:
        chunk = self.chunks[number]
        self.split.read_ahead(chunk)
        pixels = torch.stack([self._image(sample) for sample in chunk])
        return pixels, torch.from_numpy(self.split.labels[chunk.start : chunk.stop].astype(np.int64))

    def _image(self, sample: int) -> Tensor:
        try:
            return self.transform(self.split.read(sample))
        except UserError:
            raise
        except Exception as error:
            name = self.split.sample_name(sample)
            raise UserError(
                f"validation image {name} cannot be read ({error}): run `bigbatch verify`, then shard again"
            ) from None


def load_steps(batches: MicroBatches, steps: range, accumulation: int, workers: int, pin: bool) -> Iterator[MicroBatch]:
    """Yield the micro-batches of optimizer steps `steps` in order, prepared ahead by `workers` processes (0: on
    demand).

    At most two micro-batches per worker are ready ahead of the one being trained on.
    """
    places = _Places(steps, accumulation)
    return _plainly(
        iter(DataLoader(batches, sampler=places, batch_size=None, pin_memory=pin, **_worker_options(workers)))
    )


def load_evaluation(batches: EvalBatches, workers: int, pin: bool) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all evaluation batches in order."""
    return _plainly(
        iter(DataLoader(batches, batch_size=None, pin_memory=pin, **_worker_options(min(workers, len(batches)))))
    )


@dataclass(frozen=True)
class _Places:
    steps: range
    accumulation: int

    def __iter__(self):
        return ((step, number) for step in self.steps for number in range(self.accumulation))

    def __len__(self):
        return len(self.steps) * self.accumulation


def _plainly(loaded: Iterator) -> Iterator:
    """A loader's batches; what a worker has to tell the user arrives without the traceback that torch puts around it."""
    try:
        yield from loaded
    except UserError as error:
        raise UserError(str(error).rsplit("UserError: ", 1)[-1].strip()) from None


def _worker_options(workers: int) -> dict:
    if workers == 0:
        return {"num_workers": 0}
    return {"num_workers": workers, "prefetch_factor": 2, "worker_init_fn": _leave_signals_to_the_trainer}


def _leave_signals_to_the_trainer(_worker: int) -> None:
    """Ctrl-C reaches all processes of a terminal; the trainer finishes its step and still needs its workers for that."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)


@atexit.register
def _end_workers() -> None:
    """Loader processes still there at exit, after an error, would wait for ever: Python asks with SIGTERM, which they ignore."""
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()
