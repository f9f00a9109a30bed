"""The micro-batches of a process, each computed from (seed, step, position) alone.

A micro-batch depends on nothing but its step and its positions in the global batch. So there is no loader state, and a
run resumes by asking for a later step. Worker processes (`data.loader`) only decide how early a micro-batch is ready.
"""

import errno
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from data.epoch_order import ordered_samples
from data.images.augment import NO_BOX, TrainTransform, view_numbers
from data.images.evaluation_view import EvalTransform
from data.images.pillow_warnings import named_warnings
from data.input_digest import batch_digest, pixel_hashes
from data.mixing import UNMIXED, Mix, drawn_mix, mixed_alike, partner
from data.reading.shards import Split
from recipes.errors import UserError
from recipes.randomness import random_key
from recipes.schedule import StepSchedule
from recipes.schema import Recipe

_PADDING = -1
_REPLACEMENTS_TRIED = 16
_IMAGE_EXTRA_BYTES = 64  # upper limit for what a batch holds per image besides pixels: labels, positions and the like
_BATCH_EXTRA_BYTES = 4096  # and per batch, for alignment

# Errors that come from the machine or the whole shard and not from one image, and what to do about them.
_SYSTEM_ERRORS = {
    errno.EMFILE: "raise `ulimit -n`",
    errno.ENFILE: "raise the system's limit of open files",
    errno.ENOMEM: "give fewer --workers, or more memory",
    errno.ENOENT: "bring the shard back, then give the same command again",
    errno.EACCES: "allow reading it, then give the same command again",
    errno.ESTALE: "mount its file system again, then give the same command again",
}


@dataclass(frozen=True)
class MicroBatch:
    """Consecutive positions of one global batch, before normalisation, erasing and mixing.

    A position's partner can lie outside the micro-batch. Its image is then one of `extra` images at the end of
    `pixels`, `erased` and `noise_keys`; all other fields have exactly ``n`` rows.
    """

    step: int  # optimizer step, from 0
    positions: Tensor  # int64 [n], positions in the global batch; those beyond its end are padding
    samples: Tensor  # int64 [n], rows in the index of the shards; -1 for padding
    weights: Tensor  # float32 [n], 0 for padding, else 1
    pixels: Tensor  # uint8 [n + extra, 3, size, size], channels last in memory; or features (`data.feature_batches`)
    erased: list[tuple[int, int, int, int]]  # [n + extra], box as top, left, height, width in pixels
    noise_keys: list[int]  # [n + extra], keys of the noise that fills the erased box
    labels: Tensor  # int64 [n]
    partners: Tensor  # int64 [n], row in `pixels` of the image to mix with
    partner_labels: Tensor  # int64 [n]
    lam: Tensor  # float32 [n], weight of the own image and label; the partner's is 1 - lam
    mixes: list[tuple[int, int, Mix]]  # first row, last row (exclusive), and how these rows are mixed
    replaced: list[str] = field(default_factory=list)  # names of unreadable images, each with the reason
    digest: tuple[int, ...] = (0, 0, 0, 0)  # sums of hashes of samples, labels, pixels and mixing (`data.input_digest`)

    @property
    def real(self) -> int:
        """Number of positions that lie in the global batch; the others follow and are padding."""
        return max((stop for _, stop, _ in self.mixes), default=0)

    def to(self, device: torch.device) -> "MicroBatch":
        """Return the micro-batch with all tensors on `device`; copies from pinned memory are asynchronous."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def pin_memory(self) -> "MicroBatch":
        """Return the micro-batch in page-locked memory; torch's DataLoader calls this."""
        return self._mapped(lambda tensor: tensor.pin_memory())

    def record_stream(self, stream: torch.Stream) -> None:
        """Tell the GPU's memory allocator that `stream` uses the tensors too."""
        for f in fields(self):
            if isinstance(getattr(self, f.name), Tensor):
                getattr(self, f.name).record_stream(stream)

    def _mapped(self, change: Callable[[Tensor], Tensor]) -> "MicroBatch":
        values: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        changed: dict[str, Any] = {name: change(v) if isinstance(v, Tensor) else v for name, v in values.items()}
        return MicroBatch(**changed)


class MicroBatches:
    """The micro-batches of one process, indexed by (optimizer step, number within the step)."""

    def __init__(self, split: Split, recipe: Recipe, first_position: int, micro_batch: int):
        self.split = split
        self.recipe = recipe
        self.first_position = first_position
        self.micro_batch = micro_batch
        self.steps_per_epoch = StepSchedule(recipe, len(split)).steps_per_epoch
        self.transform = TrainTransform(recipe)

    @property
    def item_bytes(self) -> int:
        """Upper limit for the size of a micro-batch's tensors in bytes."""
        # A partner outside the micro-batch exists at most at each of its two ends.
        return _batch_bytes(self.micro_batch + 2, self.recipe.input.size)

    def __getitem__(self, place: tuple[int, int]) -> MicroBatch:
        step, number = place
        batch = self.recipe.batch
        first = self.first_position + number * self.micro_batch
        own = range(first, first + self.micro_batch)
        partners = [partner(position, batch.slice_size) if position < batch.global_ else position for position in own]
        mixes = self._mixes(step, own)
        mixed = any(mix != UNMIXED for _, _, mix in mixes)
        extra = sorted(set(partners) - set(own)) if mixed else []
        if not mixed:
            partners = list(own)
        row_of = {position: row for row, position in enumerate([*own, *extra])}

        samples, copies = self._samples(step, np.array(list(row_of)))
        epoch = step // self.steps_per_epoch
        # An unreadable partner is counted by the micro-batch that owns it, so that all ranks together count once.
        pixels, erased, replaced = self.images(samples, copies, epoch, self.micro_batch)
        labels = torch.from_numpy(np.where(samples == _PADDING, 0, self.split.labels[samples]).astype(np.int64))
        partner_rows = torch.tensor([row_of[position] for position in partners])
        lam = torch.ones(self.micro_batch)
        for start, stop, mix in mixes:
            lam[start:stop] = mix.lam
        lam[partner_rows == torch.arange(self.micro_batch)] = 1.0
        noise_keys = [
            random_key(self.recipe.seed, "noise", *view_numbers(epoch, int(sample), int(copy)))
            for sample, copy in zip(samples, copies)
        ]
        real = np.arange(first, max(first, min(own.stop, batch.global_)))
        hashes = self.pixel_hashes(pixels[: len(real)], samples[: len(real)])
        return MicroBatch(
            step=step,
            positions=torch.arange(own.start, own.stop),
            samples=torch.from_numpy(samples[: self.micro_batch]),
            weights=torch.tensor([float(position < batch.global_) for position in own]),
            pixels=pixels,
            erased=erased,
            noise_keys=noise_keys,
            labels=labels[: self.micro_batch],
            partners=partner_rows,
            partner_labels=labels[partner_rows],
            lam=lam,
            mixes=mixes,
            replaced=replaced,
            digest=batch_digest(real, samples, labels.numpy(), hashes, erased, noise_keys, mixes, batch.slice_size),
        )

    def images(
        self, samples: np.ndarray, copies: np.ndarray, epoch: int, own: int
    ) -> tuple[Tensor, list[tuple[int, int, int, int]], list[str]]:
        """Return pixels, erased boxes, and the names of unreadable images among the first `own`, each with the reason.

        Args:
            samples: int64 ``[n]``, -1 for padding. The number of an unreadable image is replaced in place.
            copies: int64 ``[n]``.

        Returns:
            the pixels are uint8 ``[n, 3, size, size]``.
        """
        size = self.recipe.input.size
        # Channels last, because decoding and resizing produce it and convolutions on a GPU are fastest with it.
        pixels = torch.zeros(len(samples), size, size, 3, dtype=torch.uint8).permute(0, 3, 1, 2)
        erased = [NO_BOX] * len(samples)
        replaced: list[str] = []
        self.split.read_ahead(samples[samples != _PADDING].tolist())
        for row, sample in enumerate(samples):
            if sample != _PADDING:
                image = self._image(int(sample), epoch, int(copies[row]), replaced if row < own else [])
                pixels[row], erased[row], samples[row] = image
        return pixels, erased, replaced

    def pixel_hashes(self, pixels: Tensor, samples: np.ndarray) -> np.ndarray:
        """Return a hash of each image, uint64 ``[n]``, from its pixels and its number."""
        return pixel_hashes(pixels)

    def _samples(self, step: int, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return sample and copy at each position of that step, both int64 ``[n]``; -1 beyond its end."""
        real = positions < self.recipe.batch.global_
        samples, copies = np.full((2, len(positions)), _PADDING, dtype=np.int64)
        epoch, step_in_epoch = divmod(step, self.steps_per_epoch)
        samples[real], copies[real] = ordered_samples(
            self.recipe, len(self.split), epoch, step_in_epoch, positions[real]
        )
        return samples, copies

    def _mixes(self, step: int, own: range) -> list[tuple[int, int, Mix]]:
        """Return first row, last row (exclusive) and mix of rows that are mixed alike, without padding."""
        end = min(own.stop, self.recipe.batch.global_)
        found = []
        position = own.start
        while position < end:
            stop = min(mixed_alike(self.recipe, position).stop, end)
            found.append((position - own.start, stop - own.start, drawn_mix(self.recipe, step, position)))
            position = stop
        return found

    def _image(
        self, sample: int, epoch: int, copy: int, replaced: list[str]
    ) -> tuple[Tensor, tuple[int, int, int, int], int]:
        """Return pixels, erased box and number of a sample, or of its replacement if it cannot be read.

        The replacement depends on (seed, sample) alone, so every rank, worker and restart picks the same one.
        """
        candidate = sample
        for attempt in range(_REPLACEMENTS_TRIED):
            try:
                image = self.split.read(candidate)
                with named_warnings(partial(_name, self.split, candidate)):
                    return *self.transform(image, epoch, candidate, copy), candidate
            except Exception as error:  # decoders raise almost any exception on damaged bytes
                _raise_unless_damaged(error, self.split, candidate)
                replaced.append(f"{_name(self.split, candidate)} ({type(error).__name__}: {error})")
                candidate = random_key(self.recipe.seed, "replacement", sample, attempt) % len(self.split)
        raise UserError(
            f"{_REPLACEMENTS_TRIED} images in a row could not be read, last {replaced[-1]}: run `bigbatch verify`"
        )


class EvalBatches:
    """The images `first` to `stop` (exclusive) of a split for evaluation, in batches.

    A batch is uint8 pixels ``[n, 3, size, size]`` and int64 labels ``[n]``.
    """

    def __init__(self, split: Split, recipe: Recipe, first: int, stop: int, batch_size: int):
        self.split = split
        self.transform = EvalTransform(recipe)
        self.item_bytes = _batch_bytes(batch_size, recipe.input.evaluated_size)
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
            image = self.split.read(sample)
            with named_warnings(partial(_name, self.split, sample)):
                return self.transform(image)
        except Exception as error:
            _raise_unless_damaged(error, self.split, sample)
            # An evaluation replaces nothing: another image would change the accuracy.
            raise UserError(
                f"validation image {_name(self.split, sample)} cannot be read ({error}): run `bigbatch verify`, "
                f"then shard again"
            ) from None


def _batch_bytes(images: int, size: int) -> int:
    return images * (3 * size**2 + _IMAGE_EXTRA_BYTES) + _BATCH_EXTRA_BYTES


def _raise_unless_damaged(error: Exception, split: Split, sample: int) -> None:
    """Raise an error if its cause is not a damaged image: replacing the image would hide the cause and change the run.

    Raises:
        UserError: storage fails, the shard is gone, or memory or open files have run out.
    """
    if isinstance(error, UserError):
        raise error
    number = errno.ENOMEM if isinstance(error, MemoryError) else getattr(error, "errno", None)
    if number in _SYSTEM_ERRORS:
        reason = os.strerror(number).lower()
        raise UserError(f"{_name(split, sample)} cannot be read ({reason}): {_SYSTEM_ERRORS[number]}") from None


def _name(split: Split, sample: int) -> str:
    """Return a sample's name for messages; its number if the shard that holds the name cannot be read either."""
    try:
        return split.sample_name(sample)
    except (OSError, ValueError):
        return f"sample {sample} of {split.name}"
