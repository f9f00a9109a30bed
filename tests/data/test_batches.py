"""Micro-batches: whole epochs, zero-weight padding, unreadable images replaced, and a late start that costs nothing."""

import errno

import numpy as np
import pytest
import torch

from data.batches import EvalBatches, MicroBatches
from data.loader import load_evaluation, load_steps
from data.prefetch import prefetch_to_device
from data.reading.shards import INDEX_DTYPE, ShardSet
from data.writing.sharding import shard
from recipes.errors import UserError
from recipes.load import load


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data") / "digits"
    return shard("digits", folder, val_fraction=0.2, progress=False)


@pytest.fixture
def recipe():
    return load("demo", ["batch.global=64", "batch.slices=4"])


def test_an_epoch_sees_every_sample_once_but_the_remainder(digits, recipe):
    split = digits.split("train")
    for epoch in (0, 1):
        seen = []
        for rank in range(3):
            dataset = MicroBatches(split, recipe, rank * 22, 11)
            for batch in load_steps(dataset, range(epoch * 22, (epoch + 1) * 22), 2, workers=0, pin=False):
                seen += batch.samples[batch.weights > 0].tolist()
        assert len(seen) == len(set(seen)) == 22 * 64  # of 1,438


def test_positions_beyond_the_global_batch_have_no_weight(digits, recipe):
    batch = MicroBatches(digits.split("train"), recipe, 48, 32)[(0, 0)]
    assert batch.weights.tolist() == [1.0] * 16 + [0.0] * 16
    assert (batch.pixels[16:32] == 0).all() and (batch.samples[16:] == -1).all()


def test_a_part_of_a_slice_brings_at_most_the_two_partners_beyond_its_ends(digits, recipe):
    batch = MicroBatches(digits.split("train"), recipe, 3, 6)[(0, 0)]
    assert len(batch.labels) == 6 and len(batch.pixels) == 8
    assert len(MicroBatches(digits.split("train"), recipe, 4, 6)[(0, 0)].pixels) == 6


@pytest.fixture
def damaged(tmp_path):
    """Return digits of which every twentieth is overwritten inside the shard."""
    folder = tmp_path / "digits"
    shard("digits", folder, val_fraction=0.2, progress=False)
    split = ShardSet.open(folder).split("train")
    with split.shard_paths[0].open("r+b") as file:
        for row in split.index[::20]:
            file.seek(int(row["offset"]))
            file.write(bytes(int(row["size"])))
    return ShardSet.open(folder)


def test_an_unreadable_image_is_named_and_replaced_the_same_way_everywhere(damaged, recipe):
    split = damaged.split("train")
    whole = MicroBatches(split, recipe, 0, 64)[(0, 0)]
    halves = [MicroBatches(split, recipe, first, 32)[(0, 0)] for first in (0, 32)]
    assert whole.replaced and all(".jpg in train-000000.tar" in line for line in whole.replaced)
    assert torch.equal(whole.samples, torch.cat([half.samples for half in halves]))
    assert torch.equal(whole.pixels, torch.cat([half.pixels for half in halves]))
    assert not set(whole.samples.tolist()) & set(range(0, len(split), 20))
    assert torch.equal(whole.labels, torch.from_numpy(split.labels[whole.samples].astype(np.int64)))


def test_a_damaged_validation_image_is_an_error_that_names_it(tmp_path, recipe):
    folder = tmp_path / "digits"
    shard("digits", folder, val_fraction=0.2, progress=False)
    split = ShardSet.open(folder).split("val")
    with split.shard_paths[0].open("r+b") as file:
        file.seek(int(split.index[5]["offset"]))
        file.write(bytes(50))
    with pytest.raises(UserError, match=r"val-000000.tar.*bigbatch verify"):
        list(load_evaluation(EvalBatches(split, recipe, 0, len(split), 32), workers=0, pin=False))


@pytest.mark.parametrize(
    "error, message",
    [
        (
            OSError(errno.EMFILE, "Too many open files"),
            r"\.jpg in train-000000.tar cannot be read \(too many open files\)",
        ),
        (OSError(errno.ENOENT, "No such file or directory"), "no such file or directory.*bring the shard back"),
        (MemoryError(), r"\(cannot allocate memory\): give fewer --workers, or more memory"),
    ],
    ids=["files", "gone", "memory"],
)
def test_an_image_is_not_replaced_for_what_the_machine_lacks(digits, recipe, monkeypatch, error, message):
    """Another image in its place would be another run, and nobody would know."""

    def fail(_sample):
        raise error

    for split, ask in (
        (digits.split("train"), lambda split: MicroBatches(split, recipe, 0, 4)[(0, 0)]),
        (digits.split("val"), lambda split: EvalBatches(split, recipe, 0, 4, 4)[0]),
    ):
        monkeypatch.setattr(split, "read", fail)
        with pytest.raises(UserError, match=message.replace("train-", split.name + "-")):
            ask(split)


@pytest.mark.parametrize("world_size", [1, 2, 3, 7])
def test_evaluation_counts_every_image_once(digits, recipe, world_size):
    split = digits.split("val")
    labels = []
    for rank in range(world_size):
        first, stop = len(split) * rank // world_size, len(split) * (rank + 1) // world_size
        for _, part in load_evaluation(EvalBatches(split, recipe, first, stop, 32), workers=0, pin=False):
            labels += part.tolist()
    assert labels == split.labels.tolist()


def test_the_next_batch_is_on_its_way_while_one_is_computed_with(digits, recipe):
    """On a GPU the copy runs on a stream of its own; the order of events is the same on a CPU."""
    dataset, asked = MicroBatches(digits.split("train"), recipe, 0, 64), []

    def loaded():
        for step in range(4):
            asked.append(step)
            yield dataset[(step, 0)]

    handed_out = []
    for batch in prefetch_to_device(loaded(), torch.device("cpu")):
        handed_out.append(batch.step)
        assert len(asked) == min(batch.step + 2, 4)
        assert torch.equal(batch.pixels, dataset[(batch.step, 0)].pixels)
        assert batch.pixels.permute(0, 2, 3, 1).is_contiguous()  # channels last, as it left the worker
    assert handed_out == [0, 1, 2, 3]
    assert list(prefetch_to_device(iter(()), torch.device("cpu"))) == []


class _Imagenet:
    """The index of a large data set without its data: 1.28 million rows that point at the same few images."""

    def __init__(self, split, folder, samples=1_281_167):
        rows = np.resize(split.index, samples).astype(INDEX_DTYPE)
        np.save(folder / "index.npy", rows)
        self.split, self.path, self.samples = split, folder / "index.npy", samples
        self.labels = np.load(self.path, mmap_mode="r")["label"]

    def __len__(self):
        return self.samples

    def read_ahead(self, samples):
        self.split.read_ahead(int(sample) % len(self.split) for sample in samples)

    def read(self, sample):
        return self.split.read(int(sample) % len(self.split))


def test_a_late_start_does_the_same_work_as_an_early_one(digits, tmp_path):
    """Counts the reads before the first batch of step 100,000 of an index of ImageNet's size; a benchmark times it."""
    imagenet = _Imagenet(digits.split("train"), tmp_path)
    recipe = load("convnext_tiny_in1k", ["schedule.epochs=400", "input.size=32", "batch.global=64", "batch.slices=2"])
    reads = []
    original = imagenet.read
    imagenet.read = lambda sample: reads.append(sample) or original(sample)
    for first in (0, 100_000):
        reads.clear()
        batch = next(
            load_steps(MicroBatches(imagenet, recipe, 0, 64), range(first, first + 10), 1, workers=0, pin=False)
        )
        assert batch.step == first and len(reads) == 64
