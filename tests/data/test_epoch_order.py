"""Repeated augmentation: an image comes not at all or `repeats` times in an epoch, never twice in a slice."""

import numpy as np
import pytest
import torch
from timm.data.distributed_sampler import RepeatAugSampler

from data.batches import MicroBatches
from data.epoch_order import ordered_samples, repeated_places
from data.writing.sharding import shard
from recipes.errors import UserError
from recipes.load import load
from recipes.sections import BatchSettings

SAMPLES = 1438


def epoch_of(*changes: str, epoch: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Return samples and copies of an epoch, int64 ``[steps, slices, slice size]``."""
    recipe = load("demo", ["batch.global=64", "batch.slices=4", *changes])
    parts = [ordered_samples(recipe, SAMPLES, epoch, step, np.arange(64)) for step in range(SAMPLES // 64)]
    samples, copies = (np.stack(part).reshape(-1, 4, 16) for part in zip(*parts))
    return samples, copies


@pytest.mark.parametrize("shuffle", ["full", "blocks"])
@pytest.mark.parametrize("repeats", [1, 2, 3, 4])
def test_an_image_comes_not_at_all_or_as_often_as_asked_each_time_as_another_copy(shuffle, repeats):
    samples, copies = epoch_of(f"augment.repeats={repeats}", f"data.shuffle={shuffle}")
    views = sorted(zip(samples.ravel().tolist(), copies.ravel().tolist()))
    assert len(set(views)) == len(views) == 22 * 64
    counts = np.unique(samples, return_counts=True)[1]
    # The end of an epoch may cut off the copies of one image.
    assert (counts != repeats).sum() == (1 if 22 * 64 % repeats else 0)
    assert counts.sum() == 22 * 64 and copies.max() == repeats - 1
    if repeats > 1:
        assert all(len(np.unique(one)) == 16 for step in samples for one in step)
    assert samples.min() >= 0 and samples.max() < SAMPLES


@pytest.mark.parametrize("shuffle", ["full", "blocks"])
def test_another_epoch_shows_other_images(shuffle):
    changes = ["augment.repeats=3", f"data.shuffle={shuffle}"]
    seen = [set(epoch_of(*changes, epoch=epoch)[0].ravel().tolist()) for epoch in range(4)]
    union = len(set().union(*seen))
    assert {len(one) for one in seen} == {470}  # 22 steps of 64 in threes
    # Four independent draws of a third leave out 20 %, with a standard deviation of 1 %.
    assert union / SAMPLES == pytest.approx(1 - (1 - 470 / SAMPLES) ** 4, abs=0.05)


@pytest.mark.parametrize("repeats", [2, 3, 4, 5])
def test_positions_are_those_of_timms_sampler(repeats):
    """timm's sampler on one GPU per slice, without its shuffle, gives the same image to the same position."""
    batch = BatchSettings(global_=60, slices=5)
    steps = SAMPLES // 256 * 256 // 60  # timm rounds an epoch down to 256 images
    samplers = [RepeatAugSampler(range(SAMPLES), 5, rank, shuffle=False, num_repeats=repeats) for rank in range(5)]
    theirs = np.array([list(sampler)[: steps * 12] for sampler in samplers]).reshape(5, steps, 12)
    for step in range(steps):
        ours, _ = repeated_places(batch, repeats, step, np.arange(60))
        assert np.array_equal(ours.reshape(5, 12), theirs[:, step])


def test_copies_differ_and_the_first_is_the_view_of_an_image_that_is_not_repeated(tmp_path):
    split = shard("digits", tmp_path / "digits", val_fraction=0.2, progress=False).split("train")
    recipe = load("demo", ["batch.global=64", "batch.slices=4", "augment.repeats=3", "augment.erasing=1"])
    batches = MicroBatches(split, recipe, 0, 64)
    batch = batches[0, 0]
    sample = int(batch.samples[0])
    rows = [row for row in range(64) if batch.samples[row] == sample]
    views = [batch.pixels[row] for row in rows]
    assert len(rows) == 3 and len({batch.noise_keys[row] for row in rows}) == 3
    assert not torch.equal(views[0], views[1]) and not torch.equal(views[1], views[2])
    assert torch.equal(views[0], batches.transform(split.read(sample), 0, sample)[0])


def test_more_copies_than_slices_are_refused():
    with pytest.raises(UserError, match="augment.repeats 3 needs as many slices.*batch.slices is 2"):
        load("demo", ["batch.slices=2", "augment.repeats=3"])
